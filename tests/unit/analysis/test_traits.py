"""What sessions are joined by, and what tells nothing."""

import pytest

from hermes.analysis import traits

GO = "2aec6b44b06bec95d73f66b5d30cb69a"


@pytest.mark.parametrize(
    "lines",
    [
        [], ["uname -a"], ["uname -a"] * 50, ["ls", "w", "id", "ls"], ["uname -s -v -n -r -m"], ["echo N"], ["", " ", "x"],
        ["cat /proc/cpuinfo | grep name | wc -l", "uname -a"],
    ],
)  # fmt: skip
def test_few_or_common_commands_tell_nothing(lines: list[str]) -> None:
    assert traits.commands(lines) is None


def test_a_sequence_tells_by_its_length_or_its_steps() -> None:
    steps = ["cd /tmp", "wget URL", "chmod N x", "./x"]
    first, again, other = (traits.commands(it) for it in (steps, ["cd /tmp", *steps], [*steps, "rm x"]))
    assert first is not None
    assert first == again
    assert other is not None
    assert other.value != first.value
    assert (
        traits.commands(["cd /tmp || cd /var/run || cd /mnt; wget URL; chmod N bins.sh; sh bins.sh; rm -rf bins.sh; " * 3])
        is not None
    )


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("http://192.0.2.1/bins.sh", "192.0.2.1/bins.sh"), ("192.0.2.1/bins.sh", "192.0.2.1/bins.sh"),
        ("ftp://user:pass@C2.example.:21/x/", "c2.example/x"), ("http://192.0.2.1:8080/a?b=1", "192.0.2.1:8080/a"),
        ("http://192.0.2.1", None), ("http://192.0.2.1/", None), ("https://github.com/xmrig/xmrig", None),
        ("https://raw.githubusercontent.com/x/y/z", None), ("$HOST/x", None), ("http://[::1/x", None), ("x", None),
        ("http://a.example:99999/x", None),
    ],
)  # fmt: skip
def test_places_that_things_are_fetched_from(source: str, value: str | None) -> None:
    found = traits.download(source)
    assert (found and found.value) == value


def test_files_that_are_everybodys_tell_nothing() -> None:
    assert traits.payload("a" * 64, 10, "/tmp/x") is None
    assert traits.payload("a" * 64, 5000, "/var/lib/dpkg/status") is None
    assert traits.payload("a" * 64, 5000, "/tmp/x") == traits.Trait("payload", "a" * 64, "/tmp/x " + "a" * 64)


def test_credentials_tell_only_where_nobody_would_guess_them() -> None:
    assert traits.login(GO, "root", "123456") is None
    assert traits.login("", "root", "3245gs5662d34") is None
    assert traits.login(GO, "root", "3245gs5662d34") is not None
    assert traits.password("root", "123456789") is None
    assert traits.password("root", "RWkBNMP8e9u6") is not None
