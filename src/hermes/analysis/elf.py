"""What an ELF file says of itself, read from its first bytes. Pure; hostile files give None or less, never an error."""

import struct

import msgspec

MACHINES = {
    2: "sparc", 3: "x86", 4: "m68k", 8: "mips", 18: "sparc32plus", 20: "ppc", 21: "ppc64", 22: "s390", 40: "arm", 42: "sh",
    43: "sparcv9", 50: "ia64", 62: "x86-64", 93: "arc", 94: "xtensa", 183: "aarch64", 195: "arcv2", 243: "riscv",
    258: "loongarch",
}  # fmt: skip
TYPES = {1: "relocatable", 2: "executable", 3: "shared", 4: "core"}

MAX_HEADERS = 512
"""Program or section headers looked at, at most; real files have fewer than a hundred."""

_PT_DYNAMIC, _PT_INTERP = 2, 3
_SHT_SYMTAB = 2


class Elf(msgspec.Struct, frozen=True, kw_only=True):
    """An ELF file's facts."""

    bits: int
    endian: str
    """`little` or `big`."""
    machine: str
    """`x86-64`, `arm`, `mips`, …; the number where it has no name here."""
    type: str
    """`executable`, `shared` (a library, or a position-independent program), `relocatable`, `core` or a number."""
    linked: str | None
    """`dynamic`, or `static` for a program that names neither an interpreter nor libraries; None: its headers cannot be read."""
    stripped: bool | None
    """It has no symbol table; None: its headers cannot be read, or lie beyond what was kept."""
    entry: int


def facts(data: bytes) -> Elf | None:
    """Read the facts of a file that begins with `data`; None if it is no ELF file."""
    if data[:4] != b"\x7fELF" or len(data) < 52 or data[4] not in (1, 2) or data[5] not in (1, 2):
        return None
    wide = data[4] == 2
    if wide and len(data) < 64:
        return None
    order = "<" if data[5] == 1 else ">"
    layout = "HHIQQQIHHHHHH" if wide else "HHIIIIIHHHHHH"
    kind, machine, _, entry, programs, sections, _, _, size, count, section_size, section_count, _ = struct.unpack_from(
        order + layout, data, 16
    )
    types = _types(data, programs, size, count, order, 0)
    linked = None
    if types is not None and kind in (2, 3):
        linked = "dynamic" if {_PT_DYNAMIC, _PT_INTERP} & set(types) else "static"
    stripped: bool | None = True
    if section_count:
        found = _types(data, sections, section_size, section_count, order, 4)
        stripped = None if found is None else _SHT_SYMTAB not in found
    return Elf(
        bits=64 if wide else 32,
        endian="little" if data[5] == 1 else "big",
        machine=MACHINES.get(machine, str(machine)),
        type=TYPES.get(kind, str(kind)),
        linked=linked,
        stripped=stripped,
        entry=entry,
    )


def _types(data: bytes, offset: int, size: int, count: int, order: str, at: int) -> list[int] | None:
    """The type word, `at` bytes into each header of a table; None if the table is not wholly there."""
    if size < at + 4 or offset + size * min(count, MAX_HEADERS) > len(data):
        return None
    return [struct.unpack_from(order + "I", data, offset + size * number + at)[0] for number in range(min(count, MAX_HEADERS))]
