"""Keys in text, and their fingerprints, which OpenSSH computes too."""

import subprocess
from pathlib import Path

import pytest

from hermes.analysis import keys


@pytest.mark.parametrize("kind", ["rsa", "ed25519", "ecdsa"])
def test_a_key_is_found_and_named_as_openssh_does(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "a comment", "-f", str(path)], check=True)
    public = path.with_suffix(".pub").read_text()
    shown = subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True).stdout
    command = f'cd ~ && mkdir .ssh && echo "{public.strip()}">>.ssh/authorized_keys && chmod -R go= ~/.ssh'
    (found,) = keys.find(command.encode() * 2)
    assert public.startswith(found)
    assert keys.fingerprint(found) == shown.split()[1]
    assert keys.fingerprint(public) == shown.split()[1]


@pytest.mark.parametrize(
    "text",
    [
        "ssh-rsa AAAAB3Nza", "ssh-rsa AAAA" + "!" * 50, "ssh-dss AAAAB3NzaC1yc2EAAAADAQABAAABAQDabcdefghijklmnopqrstuv",
        "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABAQDé", "", "ssh-rsa",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_key_is_none(text: str) -> None:
    assert keys.find(text.encode()) == []
    assert keys.fingerprint(text) is None


def test_a_flood_of_keys_is_bounded() -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA{:042d}\n"
    assert len(keys.find("".join(line.format(it) for it in range(1000)).encode())) == keys.MAX_KEYS
