"""What is found in a file; and files made to break whoever looks at them, looked at where that does no harm."""

import gzip
import io
import os
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from hermes.analysis import yara
from hermes.analysis.looking import Facts, Looker, Match, understood
from hermes.analysis.scanner import MAX_ANSWER, Limits, Outcome, Scanner
from hermes.broker import filters
from tests.unit.analysis.test_elf import made

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
MOST = 16 * 2**20


@pytest.fixture(scope="module")
def scanner() -> Iterator[Scanner]:
    if os.geteuid() != 0:
        pytest.skip("only root has power to give up")
    look = Looker(yara.load(None).compiled, most=MOST)
    scanner = Scanner(
        look, user="nobody", program=filters.look(), limits=Limits(seconds=30, memory=256 * 2**20)
    )  # fmt: skip
    yield scanner
    scanner.close()


def found(scanner: Scanner, data: bytes, tmp_path: Path) -> Facts:
    path = tmp_path / "file"
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        facts, failure = understood(scanner.look(fd))
    finally:
        os.close(fd)
    assert failure is None
    assert facts is not None
    return facts


def test_a_script(scanner: Scanner, tmp_path: Path) -> None:
    facts = found(scanner, f"#!/bin/sh\necho {KEY} x >> ~/.ssh/authorized_keys\n".encode(), tmp_path)
    assert facts.mime == "text/x-shellscript"
    assert "shell script" in facts.description
    assert facts.public_keys == [KEY]
    assert [(it.namespace, it.rule, it.patterns) for it in facts.matches] == [("hermes", "ssh_public_key", ["$ed25519"])]
    assert facts.elf is None


def test_a_program(scanner: Scanner, tmp_path: Path) -> None:
    facts = found(scanner, Path("/bin/sh").read_bytes(), tmp_path)
    assert facts.mime.startswith("application/x-")
    assert facts.description.startswith("ELF 64-bit")
    assert facts.elf is not None
    assert facts.elf.bits == 64


def test_an_empty_file(scanner: Scanner, tmp_path: Path) -> None:
    assert found(scanner, b"", tmp_path) == Facts(mime="inode/x-empty", description="empty", looked_at=0)


def test_of_a_large_file_the_beginning_is_looked_at(scanner: Scanner, tmp_path: Path) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.write(b"#!/bin/sh\n")
        file.truncate(100 * 2**20)
    fd = os.open(path, os.O_RDONLY)
    facts, failure = understood(scanner.look(fd))
    os.close(fd)
    assert failure is None
    assert facts is not None
    assert facts.looked_at == MOST


def test_a_zip_bomb_is_not_unpacked(scanner: Scanner, tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for number in range(20):
            archive.writestr(f"{number}", bytes(10 * 2**20))
    assert found(scanner, inner.getvalue(), tmp_path).mime == "application/zip"
    assert found(scanner, gzip.compress(bytes(50 * 2**20)), tmp_path).mime == "application/gzip"


def test_no_broken_file_breaks_the_scanner(scanner: Scanner, tmp_path: Path) -> None:
    chance = random.Random(7)
    whole = [
        made(),
        made(wide=False, order=">", machine=8),
        Path("/bin/true").read_bytes(),
        b"PK\3\4" + bytes(60),
        b"%PDF-1.4\n" * 9,
    ]
    for _ in range(60):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randrange(1, 40)):
            data[chance.randrange(min(len(data), 512))] = chance.choice((0, 0xFF, 0x7F, 0x80, chance.randrange(256)))
        path = tmp_path / "broken"
        path.write_bytes(data[: chance.randrange(1, len(data))] if chance.random() < 0.3 else data)
        fd = os.open(path, os.O_RDONLY)
        facts, failure = understood(scanner.look(fd))
        os.close(fd)
        assert (facts is None) != (failure is None)
    assert found(scanner, b"still there", tmp_path).mime == "text/plain"


def test_an_answer_too_long_is_shortened_and_says_so() -> None:
    rules = "".join(f'rule r{it} {{ meta: description = "{"x" * 900}" condition: true }}\n' for it in range(300))
    looker = Looker(yara.compile_sources([yara.Source("many", "many.yar", rules)]).compiled, most=MOST)
    reading, writing = os.pipe()
    os.write(writing, b"anything")
    os.close(writing)
    answer = looker(reading)
    os.close(reading)
    assert len(answer) <= MAX_ANSWER
    facts, _ = understood(Outcome(answer=answer))
    assert facts is not None
    assert len(facts.matches) + facts.more == 300
    assert len(facts.matches) > 10


@pytest.mark.parametrize(
    "answer",
    [
        b"\xc1", b"nonsense", msgspec.msgpack.encode({"mime": 5}), b"\xa3\xff\xfe\xfd",
        msgspec.msgpack.encode(Facts(mime="x" * 5000, description="", looked_at=1)),
        msgspec.msgpack.encode(Facts(mime="", description="", looked_at=1, matches=[Match(rule="r", namespace="n")] * 500)),
    ],
)  # fmt: skip
def test_what_a_file_that_took_over_its_look_says_is_checked(answer: bytes) -> None:
    assert understood(Outcome(answer=answer)) == (None, "the analysis gave no answer that could be read")
