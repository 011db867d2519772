"""ELF facts: of real programs, of made ones, and of files that lie."""

import struct
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.analysis.elf import Elf, facts


def made(
    *,
    wide: bool = True,
    order: str = "<",
    machine: int = 62,
    kind: int = 2,
    programs: tuple[int, ...] = (1,),
    sections: tuple[int, ...] = (0, 2),
) -> bytes:
    """A file of headers only: program headers and section headers of these types."""
    size, program_size, section_size = (64, 56, 64) if wide else (52, 32, 40)
    at_sections = size + program_size * len(programs)
    head = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    fields = (kind, machine, 1, 0x1234, size, at_sections, 0, size, program_size, len(programs), section_size, len(sections), 0)
    head += struct.pack(order + ("HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"), *fields)
    body = b"".join(struct.pack(order + "I", it).ljust(program_size, b"\0") for it in programs)
    return head + body + b"".join(struct.pack(order + "II", 0, it).ljust(section_size, b"\0") for it in sections)


def test_this_interpreter() -> None:
    found = facts(Path(sys.executable).resolve().read_bytes())
    assert found is not None
    assert (found.bits, found.endian, found.linked) == (64, "little", "dynamic")
    assert found.type in ("executable", "shared")


def test_each_kind_of_file_that_bots_bring() -> None:
    assert facts(made(wide=False, order=">", machine=8, programs=(1, 1), sections=(0, 1))) == Elf(
        bits=32, endian="big", machine="mips", type="executable", linked="static", stripped=True, entry=0x1234
    )
    assert facts(made(machine=183, kind=3, programs=(1, 3, 2))) == Elf(
        bits=64, endian="little", machine="aarch64", type="shared", linked="dynamic", stripped=False, entry=0x1234
    )
    assert facts(made(machine=4711, kind=1, programs=())) == Elf(
        bits=64, endian="little", machine="4711", type="relocatable", linked=None, stripped=False, entry=0x1234
    )


def test_headers_that_are_not_there_are_not_guessed() -> None:
    whole = made(programs=(1,) * 3, sections=(0, 2))
    cut = facts(whole[:100])
    assert cut is not None
    assert (cut.linked, cut.stripped) == (None, None)
    assert facts(whole[:63]) is None
    assert facts(b"#!/bin/sh\n" * 20) is None


@settings(max_examples=300)
@given(st.binary(max_size=400), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
def test_no_file_is_too_broken(rest: bytes, width: int, order: int) -> None:
    facts(b"\x7fELF" + bytes([width, order]) + rest)
