"""What a session changed is stated, entry by entry, by what was kept of it and what the image had."""

import asyncio
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hermes import artifacts, events
from hermes.broker.artifacts import Budgets, prepare
from hermes.broker.boxfs import keep
from hermes.broker.difference import Differences
from hermes.broker.manifest import Origin
from hermes.broker.trees import Budget
from hermes.container.messages import BrokerEvent

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what an overlay makes")


@dataclass(frozen=True)
class Box:
    container_id: str = "box"
    session_id: str = "session"
    engine: str = "local"
    allocated: float = 1e12


class Made:
    """An image, what was changed of it, and what is stated of that."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.image, self.upper = root / "image", root / "upper"
        for top in (self.image, self.upper):
            (top / "etc").mkdir(parents=True)
        (self.image / "etc" / "passwd").write_text("root")
        (self.image / "bin").symlink_to("etc")

    def budgets(self, **changes: Any) -> Budgets:
        known: dict[str, Any] = {
            "directory": str(self.root / "artifacts"), "group": 0, "file_bytes": 1 << 20, "session_bytes": 1 << 20,
            "session_entries": 100, "backlog": 1024, "min_free": 0, "end_seconds": 10,
        }  # fmt: skip
        return Budgets(**(known | changes))

    def state(
        self, *, most: int = 1000, given: tuple[tuple[str, bytes], ...] = (), bytes: int = 1 << 20, **changes: Any
    ) -> list[Any]:
        prepare(str(self.root / "artifacts"), 0)
        copied = keep(self.upper, self.root / "kept", Budget(bytes, 1000, 50, 60), origin=Origin((self.image,), given))
        stated: list[events.Event] = []
        differences = Differences(
            self.budgets(**changes), most, emit=self.unexpected, spool=lambda _: lambda event, _: stated.append(event)
        )
        asyncio.run(differences.state(Box(), self.root / "kept", copied))
        return stated

    @staticmethod
    def unexpected(fact: BrokerEvent) -> None:
        pytest.fail(f"{fact}")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def changes(stated: list[Any]) -> dict[str, tuple[str, str]]:
    return {it.path: (it.change, it.kind) for it in stated if isinstance(it, events.FileChanged)}


def test_every_kind_of_change(made: Made) -> None:
    (made.upper / "etc" / "passwd").write_text("root, toor")
    (made.upper / "etc" / "new").mkdir(mode=0o711)
    (made.upper / "etc" / "new" / "script").write_text("#!/bin/sh")
    (made.upper / "etc" / "link").symlink_to("/etc/shadow")
    os.mkfifo(made.upper / "etc" / "fifo")
    os.mknod(made.upper / "etc" / "gone", 0o20000, 0)
    (made.upper / "etc" / "new" / "again").hardlink_to(made.upper / "etc" / "new" / "script")
    stated = made.state()
    assert changes(stated) == {
        "/etc/passwd": ("changed", "file"),
        "/etc/new": ("added", "directory"),
        "/etc/new/script": ("added", "file"),
        "/etc/new/again": ("added", "file"),
        "/etc/link": ("added", "symlink"),
        "/etc/fifo": ("added", "fifo"),
        "/etc/gone": ("deleted", ""),
    }
    found = {it.path: it for it in stated if isinstance(it, events.FileChanged)}
    content = hashlib.sha256(b"#!/bin/sh").hexdigest()
    assert {found[f"/etc/new/{name}"].sha256 for name in ("script", "again")} == {content}
    assert artifacts.path(made.root / "artifacts", content).read_bytes() == b"#!/bin/sh"
    assert found["/etc/link"].target == "/etc/shadow"
    assert found["/etc/new"].mode == 0o711
    assert [(it.sha256, it.source, it.known) for it in stated if isinstance(it, events.ArtifactStored)] == [
        (it, "left", False)
        for it in dict.fromkeys(it.sha256 for it in stated if isinstance(it, events.FileChanged) and it.sha256)
    ]


def test_a_directory_counts_only_for_what_it_is_itself(made: Made) -> None:
    assert changes(made.state()) == {}


@pytest.mark.parametrize("change", ["mode", "owner"])
def test_modes_and_owners(made: Made, change: str) -> None:
    if change == "mode":
        (made.upper / "etc").chmod(0o777)
    else:
        os.chown(made.upper / "etc", 1000, 0)
    (stated,) = made.state()
    assert (stated.path, stated.change, stated.uid) == ("/etc", "changed", 0 if change == "mode" else 1000)


def test_nothing_of_the_image_shows_through_what_replaced_it(made: Made) -> None:
    os.setxattr(made.upper / "etc", "trusted.overlay.opaque", b"y")
    (made.upper / "etc" / "passwd").write_text("x")
    (made.upper / "bin").mkdir()
    (made.upper / "bin" / "passwd").write_text("y")
    assert changes(made.state()) == {
        "/etc": ("changed", "directory"),
        "/etc/passwd": ("added", "file"),
        "/bin": ("changed", "directory"),
        "/bin/passwd": ("added", "file"),
    }


def test_files_that_the_box_was_given_are_no_change_until_they_are_changed(made: Made) -> None:
    for name in ("hosts", "hostname"):
        (made.upper / "etc" / name).write_text("srv")
    assert set(changes(made.state(given=(("etc/hosts", b"srv"), ("etc/hostname", b"old"))))) == {"/etc/hostname"}


def test_names_that_are_no_text(made: Made) -> None:
    os.mkdir(os.fsencode(made.upper) + b"/\xff\x1b")  # noqa: PTH102
    with open(os.fsencode(made.upper) + b"/\xff\x1b/'\n", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    stated = made.state()
    assert set(changes(stated)) == {"/\\xff\x1b", "/\\xff\x1b/'\n"}
    assert all(it.sha256 for it in stated if isinstance(it, events.FileChanged) and it.kind == "file")


def test_budgets(made: Made) -> None:
    (made.upper / "etc").rmdir()
    for number in range(10):
        (made.upper / f"{number}").write_text(f"{number}" * 100)
    stated = made.state(most=4, session_bytes=300)
    assert len(changes(stated)) == 4
    assert [it.skipped for it in stated if isinstance(it, events.FileChanged) and it.skipped] == [
        "artifacts.session_bytes reached"
    ] * 2
    limits = {it.limit: it.detail for it in stated if isinstance(it, events.LimitReached)}
    assert set(limits) == {"artifacts.session_bytes", "artifacts.session_changes"}
    assert limits["artifacts.session_changes"].startswith("6 more entries")


def test_a_file_that_was_cut_short_has_no_hash(made: Made) -> None:
    (made.upper / "large").write_bytes(b"x" * 5000)
    stated = made.state(bytes=100)
    (large,) = (it for it in stated if it.path == "/large")
    assert (large.size, large.sha256, large.skipped) == (5000, None, "bytes")


@pytest.mark.asyncio
async def test_without_a_spool_it_waits_for_room(made: Made) -> None:
    for number in range(3):
        (made.upper / f"{number}").touch()
    prepare(str(made.root / "artifacts"), 0)
    copied = keep(made.upper, made.root / "kept", Budget(1 << 20, 1000, 50, 60), origin=Origin((made.image,)))
    facts: list[BrokerEvent] = []
    asked: list[int] = []

    def room() -> bool:
        asked.append(len(facts))
        return len(asked) % 2 == 0

    await Differences(made.budgets(), 10, emit=facts.append, room=room).state(Box(), made.root / "kept", copied)
    assert [(it.kind, it.fields["session_id"]) for it in facts if it.kind == "file.changed"] == [("file.changed", "session")] * 3
    assert len(asked) == 2 * len(facts)
