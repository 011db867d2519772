"""What is executed, with what around it, for each kind of request."""

from pathlib import Path

import pytest

from hermes.broker.accounts import Account
from hermes.broker.spawn import _command_lines, _environment
from hermes.container.messages import Spawn, Terminal

ROOT = Account(b"root", 0, 0, b"/root", b"/bin/bash")
BOB = Account(b"bob", 1000, 1000, b"/home/bob", b"/usr/bin/fish")


def test_login_shell() -> None:
    assert list(_command_lines(Spawn(id=1), BOB, {})) == [(b"/usr/bin/fish", (b"-fish",))]


def test_command() -> None:
    assert list(_command_lines(Spawn(id=1, command=b"a b"), ROOT, {})) == [(b"/bin/bash", (b"bash", b"-c", b"a b"))]
    assert list(_command_lines(Spawn(id=1, command=b""), ROOT, {})) == [(b"/bin/bash", (b"bash", b"-c", b""))]


def test_argv_with_a_slash_is_taken_as_it_is() -> None:
    assert list(_command_lines(Spawn(id=1, argv=(b"./x", b"y")), ROOT, {b"PATH": b"/bin"})) == [(b"./x", (b"./x", b"y"))]


def test_argv_is_looked_for_in_path(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").touch()
    path = b"/no/such:%s/a:%s/b" % (bytes(tmp_path), bytes(tmp_path))
    found = [program for program, _ in _command_lines(Spawn(id=1, argv=(b"tool",)), ROOT, {b"PATH": path})]
    assert found == [b"%s/a/tool" % bytes(tmp_path), b"%s/b/tool" % bytes(tmp_path)]
    assert list(_command_lines(Spawn(id=1, argv=(b"tool",)), ROOT, {})) == []


@pytest.mark.parametrize(("account", "path"), [(ROOT, b"/sbin:"), (BOB, b"/usr/games")])
def test_environment_of_a_login(account: Account, path: bytes) -> None:
    environment = _environment(Spawn(id=1), account, b"")
    assert set(environment) == {b"USER", b"LOGNAME", b"HOME", b"PATH", b"SHELL", b"MAIL"}
    assert path in environment[b"PATH"]
    assert environment[b"MAIL"] == b"/var/mail/" + account.name


def test_environment_of_a_terminal_and_a_request() -> None:
    request = Spawn(id=1, terminal=Terminal(term="xterm"), env={b"HOME": b"/tmp", b"LANG": b"C"})
    environment = _environment(request, BOB, b"/dev/pts/3")
    assert (environment[b"TERM"], environment[b"SSH_TTY"]) == (b"xterm", b"/dev/pts/3")
    assert (environment[b"HOME"], environment[b"LANG"]) == (b"/tmp", b"C")
