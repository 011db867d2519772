"""The stage that has kept files looked at: once each, whatever becomes of the look."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import msgspec
import pytest

from hermes.analysis import yara
from hermes.analysis.looking import Facts, Looker, Match
from hermes.analysis.scanner import Limits, Outcome, Scanner
from hermes.analysis.scans import DIED, OnScanned, Scans
from hermes.analysis.stage import Gone
from hermes.broker import filters
from hermes.errors import MachineError
from hermes.evidence.artifacts import ArtifactUnavailable
from tests.unit.analysis.world import World, artifact

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


MINER = "3" * 64
"""The hash of a content that is a miner."""


class FakeScanner:
    """Finds in each file what its content names; and dies, or fails, of those that say so."""

    def __init__(self) -> None:
        self.looks: list[bytes] = []

    def look(self, fd: int) -> Outcome:
        content = os.read(fd, 1000)
        self.looks.append(content)
        if content == b"deadly":
            raise MachineError("the scanner is gone")
        if content == b"broken":
            return Outcome(failure="the analysis was killed: SIGSEGV")
        return Outcome(
            answer=msgspec.msgpack.encode(
                Facts(
                    mime="application/x-executable", description=content.decode(), looked_at=len(content),
                    matches=[Match(rule=content.decode(), namespace="own", tags=[content.decode()], patterns=["$a"])],
                    public_keys=[KEY] if content == b"keys" else [],
                )
            )
        )  # fmt: skip


def scans(scanner: object, directory: Path, *told: OnScanned, rules: str = "r1") -> Scans:
    """The stage, with contents that lie in the directory by their names."""

    def content(sha256: str, inputs: Sequence[tuple[str, int]]) -> BinaryIO:
        path = directory / f"content-{sha256}"
        if sha256 == "input":
            path.write_text(repr(inputs))
        elif sha256 != "missing":
            path.write_text("miner" if sha256 == MINER else sha256)
        return path.open("rb")

    return Scans(cast(Scanner, scanner), content, rules=rules, on_scanned=told)


def look(world: World, stage: Scans) -> int:
    """Do all that waits; return the pieces of work there were."""
    count = 0
    while world.index.work(stage):
        count += 1
    return count


@pytest.fixture
def scanner() -> FakeScanner:
    return FakeScanner()


@pytest.fixture
def stage(scanner: FakeScanner, tmp_path: Path) -> Scans:
    return scans(scanner, tmp_path)


@pytest.fixture
def world(tmp_path: Path, stage: Scans) -> World:
    return World(tmp_path, [stage])


def test_each_content_is_looked_at_once_however_often_it_comes(world: World, stage: Scans, scanner: FakeScanner) -> None:
    sessions = [world.session(more=[artifact("one"), artifact("two", path=f"/tmp/{it}")]) for it in range(3)]
    look(world, stage)
    world.session(more=[artifact("one")])
    assert look(world, stage) == 0
    assert sorted(scanner.looks) == [b"one", b"two"]
    assert world.rows("SELECT sha256, state, mime, description FROM scans ORDER BY sha256") == [
        ("one", "done", "application/x-executable", "one"), ("two", "done", "application/x-executable", "two"),
    ]  # fmt: skip
    assert world.rows("SELECT namespace, rule, tags, patterns FROM scans_matches WHERE sha256 = 'two'") == [
        ("own", "two", "two", "$a")
    ]
    assert world.rows("SELECT path FROM scans_seen WHERE sha256 = 'two' AND session_id = ?", sessions[2]) == [("/tmp/2",)]


def test_a_look_that_fails_is_the_result_and_is_not_tried_again(world: World, stage: Scans, scanner: FakeScanner) -> None:
    world.session(more=[artifact("broken"), artifact("missing"), artifact("fine")])
    look(world, stage)
    world.session(more=[artifact("broken")])
    look(world, stage)
    assert scanner.looks.count(b"broken") == 1
    assert dict(world.rows("SELECT sha256, failure FROM scans")) == {
        "broken": "the analysis was killed: SIGSEGV", "missing": "it cannot be read: No such file or directory", "fine": None,
    }  # fmt: skip


def test_a_content_that_the_scanner_dies_of_is_given_up_by_the_next_analyst(
    world: World, stage: Scans, scanner: FakeScanner, tmp_path: Path
) -> None:
    world.session(more=[artifact("deadly")])
    with pytest.raises(MachineError):
        look(world, stage)
    with pytest.raises(MachineError):
        look(world, scans(scanner, tmp_path))  # it may have died of something else
    look(world, scans(scanner, tmp_path))
    assert world.rows("SELECT state, failure FROM scans") == [("failed", DIED)]
    assert scanner.looks == [b"deadly"] * 2


def test_with_other_rules_everything_is_looked_at_again(world: World, stage: Scans, scanner: FakeScanner, tmp_path: Path) -> None:
    world.session(more=[artifact("one"), artifact("broken")])
    look(world, stage)
    assert look(world, scans(scanner, tmp_path)) == 1  # to begin, and no more
    look(world, scans(scanner, tmp_path, rules="r2"))
    assert sorted(scanner.looks) == [b"broken", b"broken", b"one", b"one"]
    assert world.rows("SELECT DISTINCT rules FROM scans") == [("r2",)]


def test_keys_in_files_are_kept_by_their_fingerprints(world: World, stage: Scans) -> None:
    world.session(more=[artifact("keys", path="/root/.ssh/authorized_keys")])
    look(world, stage)
    ((fingerprint, key),) = world.rows("SELECT fingerprint, key FROM scans_keys")
    assert fingerprint.startswith("SHA256:")
    assert key == KEY


def test_contents_go_with_the_last_session_that_brought_them(world: World, stage: Scans) -> None:
    first, second = (world.session(more=[artifact("keys")]) for _ in range(2))
    look(world, stage)
    world.index.forget(Gone([f"c-{first}"], [first], []))
    assert world.rows("SELECT count(*) FROM scans") == [(1,)]
    world.index.forget(Gone([f"c-{second}"], [second], []))
    for table in ("scans", "scans_matches", "scans_keys", "scans_seen"):
        assert world.rows(f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.fixture(scope="module")
def real() -> Iterator[Scanner]:
    if os.geteuid() != 0:
        pytest.skip("only root has power to give up")
    scanner = Scanner(
        Looker(yara.load(None).compiled, most=2**20),
        user="nobody", program=filters.look(), limits=Limits(seconds=10, memory=256 * 2**20),
    )  # fmt: skip
    yield scanner
    scanner.close()


def test_a_real_scanner_tells_of_a_real_file(real: Scanner, tmp_path: Path) -> None:
    def content(sha256: str, inputs: Sequence[tuple[str, int]]) -> BinaryIO:
        if sha256 == "gone":
            raise ArtifactUnavailable("artifact gone is not kept (any more)")
        return Path("/bin/sh").open("rb")

    stage = Scans(real, content, rules="r")
    world = World(tmp_path, [stage])
    world.session(more=[artifact("sh"), artifact("gone")])
    look(world, stage)
    rows = {
        sha256: (state, elf, failure)
        for sha256, state, elf, failure in world.rows("SELECT sha256, state, elf, failure FROM scans")
    }
    assert rows["sh"][0] == "done"
    assert '"bits":64' in rows["sh"][1]
    assert rows["gone"] == ("failed", None, "artifact gone is not kept (any more)")


def test_the_input_of_a_command_is_looked_for_in_its_channel(world: World, stage: Scans, scanner: FakeScanner) -> None:
    session = world.session(more=[msgspec.structs.replace(artifact("input", path="", source="input"), channel=3)])
    look(world, stage)
    assert scanner.looks == [repr([(session, 3)]).encode()]
