"""The agent's machine code: what the listing says it is, and does what it should."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from hermes.broker import seccomp
from hermes.broker.verify import agent

X86_64, AARCH64 = 0xC000003E, 0xC00000B7


def number(name: str) -> int:
    found = seccomp.number(name)
    assert found is not None
    return found


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "agent"
    path.write_bytes(agent.program())
    path.chmod(0o755)
    return path


def ask(program: Path, *requests: bytes) -> bytes:
    done = subprocess.run([program], input=b"".join(requests), capture_output=True, timeout=20, check=True)
    assert done.stderr == b""
    return done.stdout


def test_it_makes_the_call_and_brings_back_what_it_wrote(program: Path) -> None:
    out = ask(program, agent.request(number("uname"), (agent.BUFFER,), b"", out=65 * 2))
    assert agent.ANSWER.unpack_from(out) == (0, 1)
    assert out[16:].split(b"\0")[0] == b"Linux"
    assert out[16 + 65 :].split(b"\0")[0] == os.uname().nodename.encode()


def test_it_passes_data_and_all_six_arguments(program: Path) -> None:
    data = b"/etc/hostname\0"
    opened = agent.request(number("openat"), (-100, agent.BUFFER, os.O_RDONLY, 0), data, out=0)
    mapped = agent.request(number("mmap"), (0, 4096, 1, 2, 3, 0), b"", out=0)  # private, of fd 3, offset 0
    misplaced = agent.request(number("mmap"), (0, 4096, 1, 2, 3, 1), b"", out=0)  # a bad sixth
    answers = list(agent.ANSWER.iter_unpack(ask(program, opened, mapped, misplaced)))
    assert answers[0] == (3, 1)
    assert answers[1][0] > 0
    assert answers[2] == (-22, 0)


def test_errors_come_back_and_data_does_not_change(program: Path) -> None:
    out = ask(program, agent.request(9999, (1, 2, 3), b"as it was", out=9))
    assert agent.ANSWER.unpack_from(out) == (-38, 0)
    assert out[16:] == b"as it was"


def test_it_repeats_until_a_call_fails(program: Path) -> None:
    limit = agent.request(number("prlimit64"), (0, 7, agent.BUFFER, 0), (20).to_bytes(8, "little") * 2, out=0)
    many = agent.request(number("dup"), (0,), b"", out=0, repeat=1000)
    assert list(agent.ANSWER.iter_unpack(ask(program, limit, many)))[1] == (-24, 17)


@pytest.mark.parametrize("child", [agent.LEAVE, agent.SLEEP, agent.SPIN])
def test_its_children_do_as_they_are_told_and_answer_nothing(program: Path, child: int) -> None:
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def call(name: str, *arguments: int, **named: int) -> int:
            process.stdin.write(agent.request(number(name), arguments, b"", out=0, **named))  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
            return int(agent.ANSWER.unpack(process.stdout.read(16))[0])  # type: ignore[union-attr]

        pid = call("clone", 17, 0, 0, 0, 0, child=child)
        assert pid > 0
        if child != agent.LEAVE:
            assert call("kill", pid, 9) == 0
        assert call("wait4", pid, 0, 0, 0) == pid
        process.stdin.close()
        assert process.wait(20) == 0


def test_too_much_data_is_refused() -> None:
    with pytest.raises(ValueError, match="more than"):
        agent.request(0, (), bytes(agent.BUFFER_SIZE + 1), out=0)


def listed(listing: str) -> list[tuple[str, str]]:
    """Its instructions: code and text."""
    return [(line.split()[0], " ".join(line.split()[1:])) for line in listing.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize(
    ("audit", "listing", "arguments"),
    [
        (X86_64, agent._X86_64, ("-m", "i386:x86-64", "-M", "intel")),
        (AARCH64, agent._AARCH64, ("-m", "aarch64")),
    ],
)
def test_the_listing_is_what_the_code_does(audit: int, listing: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.write_bytes(agent.code(audit))
    for objdump in ("objdump", "aarch64-linux-gnu-objdump"):
        command = [objdump, "-D", "-b", "binary", *arguments, code]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        except FileNotFoundError:
            continue
        if done.returncode == 0:
            break
    else:
        pytest.skip("no objdump here knows this architecture")
    found = re.findall(r"^ +[0-9a-f]+:\t[0-9a-f ]+?\s*\t(.+)$", done.stdout, re.MULTILINE)
    assert len(found) == len(listed(listing))
    for (_, text), real in zip(listed(listing), found, strict=True):
        mnemonic = real.split()[0]
        assert text.split()[0].removeprefix("b.") in mnemonic.removeprefix("b.") or {text.split()[0], mnemonic} == {
            "b.cc",
            "b.lo",
        }


@pytest.mark.parametrize("audit", [X86_64, AARCH64])
def test_it_is_a_small_static_program(audit: int) -> None:
    elf = agent.program(audit)
    assert elf.startswith(b"\x7fELF\x02\x01\x01")
    assert len(elf) < 1024
    assert elf.endswith(agent.code(audit))


def test_it_runs_on_the_other_architecture_too(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    path.write_bytes(agent.program(AARCH64))
    path.chmod(0o755)
    getpid = agent.request(172, (), b"", out=0, repeat=3)
    try:
        done = subprocess.run(["qemu-aarch64-static", path], input=getpid, capture_output=True, timeout=60, check=True)
    except FileNotFoundError:
        pytest.skip("qemu-user is not here")
    value, count = agent.ANSWER.unpack(done.stdout)
    assert value > 0
    assert count == 3
