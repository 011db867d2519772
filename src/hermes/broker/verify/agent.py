"""The agent: the program that attacks a box from inside, one system call at a time, as the host asks.

A static program without a library, so that any image runs it. It reads requests from standard input, makes the system call
that each asks for, and answers on standard output; it ends with its input. What is tried, and what it means, stays on the host
(`probes_…`), in Python; so the agent can do everything an attacker can, and nothing by itself.

A request is eleven 64-bit words, then data; an answer is two words, then data (`request`, `ANSWER`). The code below is what
`objdump -d` shows, byte for byte; a test assembles it anew.
"""

import struct

from hermes.broker.seccomp import machine
from hermes.errors import MachineError

BUFFER = 0x10000000
"""Where a request's data is put, and an answer's is taken from."""
BUFFER_SIZE = 0x10000
_REQUEST = BUFFER + BUFFER_SIZE
_REQUEST_SIZE = 11 * 8
_CODE = 0x400000

LEAVE, SLEEP, SPIN = 1, 2, 3
"""What a new process does that a system call makes: ends at once, sleeps for good, or takes all the CPU it can get."""

ANSWER = struct.Struct("<qQ")
"""What the last system call returned (an error as a negative number), and how many succeeded."""

_X86_64 = """
  _start:
    bb00000110       mov ebx,0x10010000
  next:
    4889de           mov rsi,rbx
    ba58000000       mov edx,0x58
    e882000000       call read_all
    be00000010       mov esi,0x10000000
    488b5338         mov rdx,[rbx+0x38]
    e874000000       call read_all
    31ed             xor ebp,ebp
  again:
    488b03           mov rax,[rbx]
    488b7b08         mov rdi,[rbx+0x8]
    488b7310         mov rsi,[rbx+0x10]
    488b5318         mov rdx,[rbx+0x18]
    4c8b5320         mov r10,[rbx+0x20]
    4c8b4328         mov r8,[rbx+0x28]
    4c8b4b30         mov r9,[rbx+0x30]
    0f05             syscall
    4989c4           mov r12,rax
    4885c0           test rax,rax
    7814             js answer
    7509             jne parent
    488b4b48         mov rcx,[rbx+0x48]
    4885c9           test rcx,rcx
    752d             jne child
  parent:
    48ffc5           inc rbp
    483b6b50         cmp rbp,[rbx+0x50]
    72c7             jb again
  answer:
    4c8923           mov [rbx],r12
    48896b08         mov [rbx+0x8],rbp
    4889de           mov rsi,rbx
    ba10000000       mov edx,0x10
    e83d000000       call write_all
    be00000010       mov esi,0x10000000
    488b5340         mov rdx,[rbx+0x40]
    e82f000000       call write_all
    eb86             jmp next
  child:
    48ffc9           dec rcx
    7443             je leave
    48ffc9           dec rcx
    7402             je sleep
  spin:
    ebfe             jmp spin
  sleep:
    b822000000       mov eax,0x22
    0f05             syscall
    ebf7             jmp sleep
  read_all:
    4885d2           test rdx,rdx
    7437             je done
    31c0             xor eax,eax
    31ff             xor edi,edi
    0f05             syscall
    4885c0           test rax,rax
    7e23             jle leave
    4801c6           add rsi,rax
    4829c2           sub rdx,rax
    ebe8             jmp read_all
  write_all:
    4885d2           test rdx,rdx
    741f             je done
    b801000000       mov eax,0x1
    89c7             mov edi,eax
    0f05             syscall
    4885c0           test rax,rax
    7e08             jle leave
    4801c6           add rsi,rax
    4829c2           sub rdx,rax
    ebe5             jmp write_all
  leave:
    b8e7000000       mov eax,0xe7
    31ff             xor edi,edi
    0f05             syscall
  done:
    c3               ret
"""
_AARCH64 = """
  _start:
    3300a2d2         mov x19, #0x10010000
    1400a2d2         mov x20, #0x10000000
  next:
    e10313aa         mov x1, x19
    020b80d2         mov x2, #0x58
    27000094         bl read_all
    e10314aa         mov x1, x20
    621e40f9         ldr x2, [x19, #56]
    24000094         bl read_all
    150080d2         mov x21, #0x0
  again:
    680240f9         ldr x8, [x19]
    608640a9         ldp x0, x1, [x19, #8]
    628e41a9         ldp x2, x3, [x19, #24]
    649642a9         ldp x4, x5, [x19, #40]
    010000d4         svc #0x0
    f60300aa         mov x22, x0
    0001f8b7         tbnz x0, #63, answer
    600000b5         cbnz x0, parent
    692640f9         ldr x9, [x19, #72]
    a90100b5         cbnz x9, child
  parent:
    b5060091         add x21, x21, #0x1
    692a40f9         ldr x9, [x19, #80]
    bf0209eb         cmp x21, x9
    63feff54         b.cc again
  answer:
    765600a9         stp x22, x21, [x19]
    e10313aa         mov x1, x19
    020280d2         mov x2, #0x10
    1a000094         bl write_all
    e10314aa         mov x1, x20
    622240f9         ldr x2, [x19, #64]
    17000094         bl write_all
    e4ffff17         b next
  child:
    290500d1         sub x9, x9, #0x1
    a90300b4         cbz x9, leave
    290500d1         sub x9, x9, #0x1
    490000b4         cbz x9, sleep
  spin:
    00000014         b spin
  sleep:
    000080d2         mov x0, #0x0
    010080d2         mov x1, #0x0
    020080d2         mov x2, #0x0
    030080d2         mov x3, #0x0
    280980d2         mov x8, #0x49
    010000d4         svc #0x0
    faffff17         b sleep
  read_all:
    a20200b4         cbz x2, done
    000080d2         mov x0, #0x0
    e80780d2         mov x8, #0x3f
    010000d4         svc #0x0
    1f0000f1         cmp x0, #0x0
    ad010054         b.le leave
    2100008b         add x1, x1, x0
    420000cb         sub x2, x2, x0
    f8ffff17         b read_all
  write_all:
    820100b4         cbz x2, done
    200080d2         mov x0, #0x1
    080880d2         mov x8, #0x40
    010000d4         svc #0x0
    1f0000f1         cmp x0, #0x0
    8d000054         b.le leave
    2100008b         add x1, x1, x0
    420000cb         sub x2, x2, x0
    f8ffff17         b write_all
  leave:
    000080d2         mov x0, #0x0
    c80b80d2         mov x8, #0x5e
    010000d4         svc #0x0
  done:
    c0035fd6         ret
"""

_CODES = {0xC000003E: (62, _X86_64), 0xC00000B7: (183, _AARCH64)}
"""By the kernel's name for an architecture: ELF's, and the code."""


def request(number: int, arguments: tuple[int, ...], data: bytes, *, out: int, child: int = 0, repeat: int = 1) -> bytes:
    """Ask for system call `number`, with `data` at BUFFER, of which `out` bytes come back.

    It is made again until it fails or was made `repeat` times. Should one of them make a process, that does as `child` says.
    """
    if len(data) > BUFFER_SIZE or out > BUFFER_SIZE:
        raise ValueError(f"more than the agent's {BUFFER_SIZE} bytes")
    words = [number, *arguments, *[0] * (6 - len(arguments)), len(data), out, child, repeat]
    return struct.pack("<11Q", *(word & 0xFFFF_FFFF_FFFF_FFFF for word in words)) + data


def code(audit: int) -> bytes:
    """The machine code for an architecture, as the kernel's audit names it."""
    _, listing = _CODES[audit]
    lines = (line.split() for line in listing.splitlines() if line.startswith("    "))
    return b"".join(bytes.fromhex(line[0]) for line in lines)


def program(audit: int | None = None) -> bytes:
    """The agent as an ELF file, for this machine's architecture or another."""
    audit = machine()[2] if audit is None else audit
    if audit not in _CODES:
        raise MachineError("there is no agent for this architecture")
    text = code(audit)
    headers = 64 + 2 * 56
    size = headers + len(text)
    elf = struct.pack(
        "<16sHHIQQQIHHHHHH",
        b"\x7fELF\x02\x01\x01", 2, _CODES[audit][0], 1, _CODE + headers, 64, 0, 0, 64, 56, 2, 64, 0, 0,
    )  # fmt: skip
    readable, writable, executable = 4, 2, 1
    page = 0x10000
    elf += struct.pack("<IIQQQQQQ", 1, readable | executable, 0, _CODE, _CODE, size, size, page)
    memory = _REQUEST + _REQUEST_SIZE - BUFFER
    elf += struct.pack("<IIQQQQQQ", 1, readable | writable, 0, BUFFER, BUFFER, 0, memory, page)
    return elf + text
