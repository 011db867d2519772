"""Which command is behind a process, and what it did."""

from typing import Any

import pytest

from hermes.evidence import causes
from hermes.evidence.causes import Cause, Causes


def started(pid: int, parent: int, *argv: str, channel: int | None = 1, **more: Any) -> tuple[str, dict[str, Any]]:
    return "process.started", {"pid": pid, "parent": parent, "argv": list(argv), "channel": channel, **more}


def take(all_of_it: Causes, *events: tuple[str, dict[str, Any]]) -> list[Cause]:
    return [all_of_it.of_event(*one) for one in events]


EXEC = ("channel.started", {"channel": 1, "kind": "exec", "command": "sh x.sh"})
SHELL = ("channel.started", {"channel": 1, "kind": "shell", "command": None})


def line(text: str) -> tuple[str, dict[str, Any]]:
    return "channel.input", {"channel": 1, "line": text}


def test_all_of_an_exec_channel_is_of_its_command() -> None:
    it = Causes()
    *_, top, child, connect, out = take(
        it, EXEC, started(10, 0, "sh", "x.sh"), started(11, 10, "wget"), ("network.attempted", {"pid": 11}),
        ("file.written", {"channel": 1}),
    )  # fmt: skip
    assert top == Cause(1, "sh x.sh", 0)
    assert child == Cause(1, "sh x.sh", 1)
    assert connect == Cause(1, "sh x.sh", 2)
    assert out == it.of_channel(1) == Cause(1, "sh x.sh")


def test_in_a_shell_it_is_the_line_entered_before() -> None:
    it = Causes()
    shell, _, first, _, second = take(
        it, SHELL, started(10, 0, "-bash"), line("./miner &"), started(11, 10, "./miner"), line("ls")
    )  # fmt: skip
    assert shell == Cause(1)
    assert take(it, started(12, 10, "ls"), started(13, 11, "sh", "-c", "x")) == [Cause(1, "ls", 1), Cause(1, "./miner &", 2)]
    assert (first, second) == (Cause(1), Cause(1))


def test_a_shell_started_in_a_shell_takes_the_lines_that_follow() -> None:
    it = Causes()
    take(
        it,
        SHELL,
        started(10, 0, "-bash"),
        line("sudo bash"),
        started(11, 10, "sudo", "bash"),
        started(12, 11, "bash"),
        line("id"),
    )
    assert take(it, started(13, 12, "id")) == [Cause(1, "id", 3)]


def test_a_script_does_not() -> None:
    it = Causes()
    take(it, SHELL, started(10, 0, "-bash"), line("bash x.sh &"), started(11, 10, "bash", "x.sh"), line("id"))
    assert take(it, started(12, 11, "curl")) == [Cause(1, "bash x.sh &", 2)]


def test_a_subshell_that_executed_nothing_does_not_cut_the_tree() -> None:
    it = Causes()
    take(it, SHELL, started(10, 0, "-bash"), line("(wget x; sh y)"))
    assert take(it, started(12, 11, "wget", "x")) == [Cause(1, "(wget x; sh y)", 1)]


def test_a_process_that_executes_another_program_stays_where_it_was() -> None:
    it = Causes()
    take(it, EXEC, started(10, 0, "sh"), started(11, 10, "env"))
    assert take(it, started(11, 10, "nc")) == [Cause(1, "sh x.sh", 1)]


def test_a_number_is_anothers_after_an_exit_and_a_program_that_failed_was_none() -> None:
    it = Causes()
    take(it, EXEC, started(10, 0, "sh"), started(11, 10, "a"), started(12, 11, "b"))
    assert take(it, ("process.exited", {"pid": 12, "channel": 1})) == [Cause(1, "sh x.sh", 2)]
    assert take(it, started(12, 10, "nope", error="ENOENT"), ("network.attempted", {"pid": 12, "channel": 1})) == [
        Cause(1, "sh x.sh", 1),
        Cause(1, "sh x.sh", 0),
    ]


def test_what_is_of_no_channel_has_no_cause_and_nonsense_does_no_harm() -> None:
    it = Causes()
    assert (
        take(
            it,
            ("auth.attempt", {}),
            ("process.started", {"pid": "x"}),
            started(1, 1, channel=None),
            ("file.written", {"pid": 99}),
        )[0]
        == Cause()
    )


def test_what_is_kept_of_a_file_is_of_what_wrote_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causes, "CONTENTS", 2)
    it = Causes()
    take(it, EXEC, started(10, 0, "sh"), ("file.written", {"pid": 10, "sha256": "aa"}))
    assert take(it, ("artifact.stored", {"sha256": "aa"}), ("artifact.stored", {"sha256": "bb"})) == [
        Cause(1, "sh x.sh", 1),
        Cause(),
    ]
    take(it, *(("file.written", {"sha256": str(number)}) for number in range(9)))
    assert len(it._contents) == 2


def test_processes_without_an_end_are_forgotten() -> None:
    it = Causes()
    for pid in range(causes.REMEMBERED + 10):
        it.of_event(*started(pid + 1, 0, "x"))
    assert len(it._processes) == causes.REMEMBERED
