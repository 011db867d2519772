"""Terminal modes as SSH encodes them (RFC 4254, 8; IUTF8 from RFC 8160), put onto a terminal. Imported by the zygote."""

import termios
from collections.abc import Mapping
from contextlib import suppress

_IUTF8 = 0o40000
_CHARACTERS = {
    1: termios.VINTR, 2: termios.VQUIT, 3: termios.VERASE, 4: termios.VKILL, 5: termios.VEOF, 6: termios.VEOL, 7: termios.VEOL2,
    8: termios.VSTART, 9: termios.VSTOP, 10: termios.VSUSP, 12: termios.VREPRINT, 13: termios.VWERASE, 14: termios.VLNEXT,
    16: termios.VSWTC, 18: termios.VDISCARD,
}  # fmt: skip
_INPUT = {
    30: termios.IGNPAR, 31: termios.PARMRK, 32: termios.INPCK, 33: termios.ISTRIP, 34: termios.INLCR, 35: termios.IGNCR,
    36: termios.ICRNL, 37: termios.IUCLC, 38: termios.IXON, 39: termios.IXANY, 40: termios.IXOFF, 41: termios.IMAXBEL, 42: _IUTF8,
}  # fmt: skip
_LOCAL = {
    50: termios.ISIG, 51: termios.ICANON, 52: termios.XCASE, 53: termios.ECHO, 54: termios.ECHOE, 55: termios.ECHOK,
    56: termios.ECHONL, 57: termios.NOFLSH, 58: termios.TOSTOP, 59: termios.IEXTEN, 60: termios.ECHOCTL, 61: termios.ECHOKE,
    62: termios.PENDIN,
}  # fmt: skip
_OUTPUT = {
    70: termios.OPOST, 71: termios.OLCUC, 72: termios.ONLCR, 73: termios.OCRNL, 74: termios.ONOCR, 75: termios.ONLRET,
}  # fmt: skip
_CONTROL = {92: termios.PARENB, 93: termios.PARODD}
_SIZES = {90: termios.CS7, 91: termios.CS8}
_SPEEDS = {128: 4, 129: 5}
_FLAGS = {
    opcode: (index, bit) for index, table in enumerate((_INPUT, _OUTPUT, _CONTROL, _LOCAL)) for opcode, bit in table.items()
}
_DISABLED = 255


def apply(fd: int, modes: Mapping[int, int]) -> None:
    """Set the terminal's modes; opcodes and values that Linux does not know are passed over."""
    if not modes:
        return
    attributes = termios.tcgetattr(fd)
    characters = attributes[6]
    for opcode, value in modes.items():
        if opcode in _FLAGS:
            index, bit = _FLAGS[opcode]
            attributes[index] = attributes[index] | bit if value else attributes[index] & ~bit
        elif opcode in _CHARACTERS and 0 <= value <= _DISABLED:
            characters[_CHARACTERS[opcode]] = bytes((0 if value == _DISABLED else value,))
        elif opcode in _SIZES and value:
            attributes[2] = attributes[2] & ~termios.CSIZE | _SIZES[opcode]
        elif opcode in _SPEEDS and (speed := getattr(termios, f"B{value}", None)):
            attributes[_SPEEDS[opcode]] = speed
    # A pty takes what it can (no parity, no 7 bits), and libc then reports the rest as an error, which sshd ignores too.
    with suppress(termios.error):
        termios.tcsetattr(fd, termios.TCSANOW, attributes)
