"""The scripts, run by real shells on this machine."""

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from hermes.broker.engines import exec_scripts as scripts
from hermes.container.messages import Spawn, Terminal

SHELLS = [[path] for name in ("dash", "bash") if (path := shutil.which(name))]
USER = pwd.getpwuid(os.getuid()).pw_name


def run(shell: list[str], spawn: Spawn, stdin: bytes = b"") -> tuple[list[bytes], bytes, int]:
    """The words of the greeting, what followed, and the exit status."""
    command = scripts.login(spawn, "token", ("FROM_THE_IMAGE",))
    env = {"FROM_THE_IMAGE": "x", "HOSTNAME": "x", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([*shell, *command[1:]], input=stdin, stdout=subprocess.PIPE, env=env, check=False, timeout=30)
    greeting, _, rest = done.stdout.partition(b"\n")
    return greeting.split(), rest, done.returncode


@pytest.fixture(params=SHELLS, ids=lambda shell: Path(shell[0]).name)
def shell(request: pytest.FixtureRequest) -> list[str]:
    assert isinstance(request.param, list)
    return request.param


def test_every_byte_of_every_argument_arrives(shell: list[str]) -> None:
    args = (
        b"printf",
        b"<%s>",
        bytes(range(1, 256)),
        b"",
        b"\xff\n\n",
        b"$(id) `id` \\0101\\c",
        b"caf\xc3\xa9\n",
        b"=",
        b"+\\0101",
    )
    greeting, output, status = run(shell, Spawn(id=1, user=USER, argv=args))
    assert greeting[0] == b"token"
    assert int(greeting[1]) > 1
    assert output == b"".join(b"<" + arg + b">" for arg in args[2:])
    assert status == 0


def test_long_bytes_arrive(shell: list[str]) -> None:
    long = b"\xff\n" * 40_000
    assert run(shell, Spawn(id=1, user=USER, argv=(b"printf", b"%s", long)))[1] == long


def test_environment_is_a_logins(shell: list[str]) -> None:
    spawn = Spawn(id=1, user=USER, argv=(b"env", b"-0"), env={b"LANG": b"x\xff\n", b"_kind": b"1", b"bad-name": b"x"}, cwd=b"/")
    env = dict(entry.split(b"=", 1) for entry in run(shell, spawn)[1].split(b"\0") if entry)
    entry = pwd.getpwnam(USER)
    assert env[b"LANG"] == b"x\xff\n"
    assert env[b"_kind"] == b"1"
    assert (env[b"USER"], env[b"HOME"], env[b"SHELL"]) == (USER.encode(), entry.pw_dir.encode(), entry.pw_shell.encode())
    assert not {b"FROM_THE_IMAGE", b"HOSTNAME", b"bad-name", b"OLDPWD", b"TERM"} & set(env)


def test_login_shell_has_a_dash(shell: list[str]) -> None:
    _, output, status = run(shell, Spawn(id=1, user=USER), b"echo $0; exit 7\n")
    assert output.splitlines()[0].startswith(b"-")
    assert status == 7


def test_command_knows_its_shell_by_name(shell: list[str]) -> None:
    name = Path(pwd.getpwnam(USER).pw_shell).name.encode()
    assert run(shell, Spawn(id=1, user=USER, command=b"echo $0 \xff"))[1] == name + b" \xff\n"


@pytest.mark.parametrize("program", [b"no-such-program", b"/no/such", b"/etc/passwd", b"/etc", b"-c"])
def test_what_cannot_run_does_not_greet(shell: list[str], program: bytes) -> None:
    greeting, _, status = run(shell, Spawn(id=1, user=USER, argv=(program,)))
    assert greeting[0] != b"token"
    assert status == 127


def test_a_directory_that_cannot_be_entered_is_the_root(shell: list[str]) -> None:
    assert run(shell, Spawn(id=1, user=USER, argv=(b"pwd",), cwd=b"/no/such"))[1] == b"/\n"
    assert run(shell, Spawn(id=1, user=USER, argv=(b"pwd",), cwd=b"/usr"))[1] == b"/usr\n"
    assert run(shell, Spawn(id=1, user=USER, argv=(b"pwd",), cwd=b"-"))[1] == b"/\n"


@pytest.mark.parametrize("name", ["", "0", "1000", "a:b", "root:0", "-x", "a/b", "a b", "a\n", "../x", "é", "x" * 100])
def test_names_docker_would_misread_are_refused(name: str) -> None:
    assert not scripts.may_exist(name)
    with pytest.raises(scripts.Impossible):
        scripts.login(Spawn(id=1, user=name), "token", ())


@pytest.mark.parametrize(
    "spawn",
    [
        Spawn(id=1, argv=(b"a\0b",)),
        Spawn(id=1, argv=(b"",)),
        Spawn(id=1, command=b"\0"),
        Spawn(id=1, cwd=b"/\0"),
        Spawn(id=1, env={b"X": b"\0"}),
        Spawn(id=1, argv=(b"true", *[b""] * scripts.MAX_VALUES)),
    ],
)
def test_impossible_requests_are_refused(spawn: Spawn) -> None:
    with pytest.raises(scripts.Impossible):
        scripts.login(spawn, "token", ())


def test_only_plain_words_reach_the_scripts_word_splitting() -> None:
    terminal = Terminal(
        width=-5, height=1 << 40, modes={53: 0, 3: 0x15, 1: 255, 5: 127, 4: ord("*"), 6: 300, 91: 1, 128: 38400, 999: 1}
    )
    size, modes = scripts.stty(terminal)
    assert size == "rows 65535 cols 0"
    assert modes == "-echo erase ^U intr undef eof ^? kill 42 cs8"
    command = scripts.login(Spawn(id=1), "token", ("GOOD", "bad;name", "$(id)"))
    assert "=GOOD HOSTNAME TERM" in command


def test_modes_are_what_stty_takes() -> None:
    every = dict.fromkeys([*range(30, 42), *range(50, 62), *range(70, 76)], 1) | dict.fromkeys(range(1, 15), 3)
    _, modes = scripts.stty(Terminal(modes=every))
    done = subprocess.run(
        ["script", "-qec", f"stty {modes} && stty -a", "/dev/null"], capture_output=True, check=False, timeout=30
    )
    assert done.returncode == 0, done.stdout
    assert b"LNEXT = ^C" in done.stdout.upper()


def test_a_signal_reaches_the_whole_session_and_no_other(tmp_path: Path) -> None:
    odd = tmp_path / "x) R 1 1 1\n(1 1"
    odd.symlink_to(shutil.which("sleep") or "")
    command = ["/bin/sh", "-c", '"$1" 1000 & exec sleep 1000', "sh", str(odd)]
    target = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    bystander = subprocess.Popen(["sleep", "1000"])
    try:
        while subprocess.run(["pgrep", "-c", "-s", str(target.pid)], capture_output=True, check=False).stdout.strip() != b"2":
            assert target.poll() is None
        subprocess.run(scripts.signal(target.pid, ("TERM",)), check=True, timeout=30)
        assert target.wait(30) == -signal.SIGTERM
        assert bystander.poll() is None
        # The pipe ends when the child, which holds it as well, has ended.
        assert target.communicate(timeout=30)[0] == b""
    finally:
        for process in (target, bystander):
            process.kill()
            process.wait()
