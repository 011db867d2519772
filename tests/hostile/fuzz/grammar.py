"""What a client may say, as grammar: every message of RFC 4250 to 4254 and of OpenSSH, whole or nearly so."""

import random
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from tests.hostile.fuzz.case import Case, Depth, Step

T = TypeVar("T")

EDGES = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    255,
    256,
    1023,
    1024,
    32767,
    32768,
    65535,
    65536,
    2**21,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 2,
    2**32 - 1,
)
NASTY = (
    b"", b"\0", b"a\0b", b"\xff\xfe\xfd", b"%s%n%x", b"../" * 8, b"\x1b]0;x\x07\x1b[2J", b"\r\n", b"-oProxyCommand=x",
    "ü€".encode(), b"\xed\xa0\x80", b"a" * 255, b"a" * 300, b"a" * 5000, b"root\n", b"root,root", b";", b"'\"`$(", b"\\x00", b"*",
)  # fmt: skip
METHODS = (b"none", b"password", b"publickey", b"keyboard-interactive", b"hostbased", b"gssapi-with-mic", b"gssapi-keyex", b"x")
GLOBALS = (
    b"tcpip-forward", b"cancel-tcpip-forward", b"streamlocal-forward@openssh.com", b"cancel-streamlocal-forward@openssh.com",
    b"keepalive@openssh.com", b"no-more-sessions@openssh.com", b"hostkeys-prove-00@openssh.com", b"hostkeys-00@openssh.com", b"x",
)  # fmt: skip
OPENS = (
    b"session", b"direct-tcpip", b"forwarded-tcpip", b"x11", b"direct-streamlocal@openssh.com", b"tun@openssh.com",
    b"forwarded-streamlocal@openssh.com", b"auth-agent@openssh.com", b"auth-agent", b"x",
)  # fmt: skip
REQUESTS = (
    b"pty-req", b"env", b"shell", b"exec", b"subsystem", b"window-change", b"signal", b"break", b"xon-xoff", b"exit-status",
    b"exit-signal", b"eow@openssh.com", b"keepalive@openssh.com", b"auth-agent-req@openssh.com", b"x11-req", b"x",
)  # fmt: skip
COMMANDS = (
    b"true",
    b"cat",
    b"echo x",
    b"head -c 300000 /dev/zero",
    b"exit 3",
    b"kill -9 $$",
    b"sleep 0.1",
    b"id; uname -a",
    b"\xff",
    b"",
)
KEX = (b"curve25519-sha256", b"ecdh-sha2-nistp256", b"diffie-hellman-group14-sha256", b"sntrup761x25519-sha512@openssh.com", b"x")
KEYS = (b"ssh-ed25519", b"rsa-sha2-256", b"rsa-sha2-512", b"ecdsa-sha2-nistp256", b"ssh-rsa", b"x")
CIPHERS = (b"aes128-ctr", b"aes256-gcm@openssh.com", b"chacha20-poly1305@openssh.com", b"none", b"x")
MACS = (b"hmac-sha2-256", b"hmac-sha2-256-etm@openssh.com", b"none", b"x")
COMPRESSION = (b"none", b"zlib@openssh.com", b"zlib", b"x")


def u32(value: int) -> bytes:
    """A uint32."""
    return struct.pack(">I", value & 0xFFFFFFFF)


def text(data: bytes) -> bytes:
    """A string."""
    return u32(len(data)) + data


class Grammar:
    """Generates from one source of chance: the same seed gives the same case, on every machine."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    # ---- atoms

    def one(self, choices: Sequence[T]) -> T:
        """One of them."""
        return self.dice.choice(choices)

    def rarely(self, chance: float = 0.1) -> bool:
        """True now and then."""
        return self.dice.random() < chance

    def any_of(self, *makers: Callable[[], bytes]) -> bytes:
        """What one of them makes."""
        return self.one(makers)()

    def number(self, *usual: int) -> bytes:
        """A uint32: a usual value, or one at an edge."""
        if usual and not self.rarely(0.2):
            return u32(self.one(usual))
        return u32(self.one(EDGES) if self.rarely(0.7) else self.dice.getrandbits(32))

    def string(self, *usual: bytes) -> bytes:
        """A string: a usual value, or a nasty one; now and then its length is a lie."""
        data = self.one(usual) if usual and not self.rarely(0.2) else self.blob()
        if self.rarely(0.03):
            return self.number() + data
        return text(data)

    def blob(self) -> bytes:
        """Bytes."""
        if self.rarely(0.7):
            return self.one(NASTY)
        return self.dice.randbytes(self.one((0, 1, 3, 16, 100, 1000, 20000)))

    def flag(self) -> bytes:
        """A boolean, of which there are 256."""
        return self.one((b"\0", b"\1", b"\1", b"\xff"))

    def names(self, *known: bytes) -> bytes:
        """A name-list."""
        chosen = [self.one(known) for _ in range(self.dice.randrange(4))]
        if self.rarely():
            chosen += [self.one(NASTY)] * self.one((1, 50))
        return text(b",".join(chosen))

    def key(self) -> bytes:
        """A public key's blob, as good as any that nobody holds."""
        kind = self.one(KEYS)
        if kind == b"ssh-ed25519":
            return text(kind) + self.string(self.dice.randbytes(32))
        if kind == b"ssh-rsa":
            return text(kind) + self.string(b"\1\0\1") + self.string(b"\0" + self.dice.randbytes(256), b"", b"\0", b"\x80")
        return text(kind) + self.string(b"nistp256") + self.string(b"\4" + self.dice.randbytes(64), b"\0")

    # ---- messages

    def message(self) -> bytes:
        """Any message at all."""
        return self.any_of(
            self.transport, self.transport, self.kexinit, self.kex, self.userauth, self.userauth, self.global_request,
            self.open_channel, self.channel, self.channel, self.channel, self.request, self.request, self.unknown,
        )  # fmt: skip

    def transport(self) -> bytes:
        """Messages 1 to 8 and 21."""
        return self.any_of(
            lambda: b"\x01" + self.number(2, 11) + self.string(b"bye") + self.string(b""),
            lambda: b"\x02" + self.string(b""),
            lambda: b"\x03" + self.number(0),
            lambda: b"\x04" + self.flag() + self.string(b"debug") + self.string(b"en"),
            lambda: b"\x05" + self.string(b"ssh-userauth", b"ssh-connection", b"ssh-userauth"),
            lambda: b"\x06" + self.string(b"ssh-userauth", b"ssh-connection"),
            lambda: b"\x07" + self.number(0, 1, 2) + self.string(b"ext-info-in-auth@openssh.com") + self.string(b"0"),
            lambda: b"\x08",
            lambda: b"\x15",
        )  # fmt: skip

    def kexinit(self) -> bytes:
        """Message 20."""
        lists = [KEX, KEYS, CIPHERS, CIPHERS, MACS, MACS, COMPRESSION, COMPRESSION, (), ()]
        offered = b"".join(text(b",".join(known)) if not self.rarely(0.2) else self.names(*known or (b"x",)) for known in lists)
        return b"\x14" + self.dice.randbytes(16) + offered + self.flag() + self.number(0)

    def kex(self) -> bytes:
        """Messages 30 to 49."""
        share = self.string(self.dice.randbytes(32), self.dice.randbytes(65), bytes(32), self.dice.randbytes(1190), b"\xff" * 256)
        return bytes([self.one((30, 30, 31, 32, 33, 34, 35, 40, 49))]) + self.one((share, self.number(2048) * 3, share + share))

    def userauth(self) -> bytes:
        """Message 50, by every method, and 51 to 66 and beyond, which only a server may send."""
        if self.rarely():
            return bytes([self.one((51, 52, 53, 60, 61, 62, 63, 64, 65, 66, 79))]) + self.number(1) + self.string(b"root")
        method = self.one(METHODS)
        head = b"\x32" + self.string(b"root", b"root", b"admin") + self.string(b"ssh-connection") + self.string(method)
        return head + self.userauth_body(method)

    def userauth_body(self, method: bytes) -> bytes:
        """What follows the method's name."""
        if method == b"password":
            return self.flag() + self.string(b"root", b"wrong") + (self.string(b"new") if self.rarely(0.3) else b"")
        if method == b"publickey":
            algorithm = self.one(KEYS)
            signature = text(self.string(algorithm) + self.string(self.dice.randbytes(64))) if self.rarely(0.6) else b""
            return (b"\1" if signature else b"\0") + self.string(algorithm) + text(self.key()) + signature
        if method == b"keyboard-interactive":
            return self.string(b"") + self.string(b"pam")
        if method == b"hostbased":
            return self.string(*KEYS) + text(self.key()) + self.string(b"host") + self.string(b"root") + self.string(b"sig")
        if method.startswith(b"gssapi"):
            return self.number(1) + self.string(b"\x06\x09\x2a\x86\x48\x86\xf7\x12\x01\x02\x02")
        return b"" if self.rarely(0.7) else self.blob()

    def global_request(self) -> bytes:
        """Message 80, and the answers 81 and 82 to what was never asked."""
        if self.rarely():
            return self.one((b"\x51", b"\x52", b"\x51" + self.number(22)))
        name = self.one(GLOBALS)
        body = {
            b"tcpip-forward": lambda: self.string(b"", b"localhost", b"0.0.0.0") + self.number(0, 8080),
            b"cancel-tcpip-forward": lambda: self.string(b"", b"localhost") + self.number(0, 8080),
            b"streamlocal-forward@openssh.com": lambda: self.string(b"/tmp/x"),
            b"cancel-streamlocal-forward@openssh.com": lambda: self.string(b"/tmp/x"),
            b"hostkeys-prove-00@openssh.com": lambda: text(self.key()) * self.one((1, 3)),
        }.get(name, lambda: b"")()
        return b"\x50" + self.string(name) + self.flag() + body

    def open_channel(self, kind: bytes | None = None) -> bytes:
        """Message 90."""
        kind = kind or self.one(OPENS)
        sizes = self.number(0, 1, 5) + self.number(2**21, 2**31 - 1, 0) + self.number(32768, 16384, 1)
        body = {
            b"direct-tcpip": lambda: (
                self.string(b"192.0.2.1", b"localhost") + self.number(80) + self.string(b"::1") + self.number(1)
            ),
            b"forwarded-tcpip": lambda: self.string(b"") + self.number(80) + self.string(b"::1") + self.number(1),
            b"x11": lambda: self.string(b"::1") + self.number(6010),
            b"direct-streamlocal@openssh.com": lambda: self.string(b"/var/run/docker.sock") + self.string(b"") + self.number(0),
            b"tun@openssh.com": lambda: self.number(1, 2) + self.number(0),
        }.get(kind, lambda: b"")()
        return b"\x5a" + self.string(kind) + sizes + body

    def channel(self) -> bytes:
        """Messages 91 to 97, 99 and 100 on some channel."""
        number = self.number(0, 0, 0, 1, 2)
        return self.any_of(
            lambda: b"\x5b" + number + self.number(0) + self.number(2**21) + self.number(32768),
            lambda: b"\x5c" + number + self.number(1) + self.string(b"no") + self.string(b""),
            lambda: b"\x5d" + number + self.number(1, 2**21, 2**31),
            lambda: b"\x5e" + number + self.string(b"x", b"echo hi\n", b"\x03", b"\x04", b"y" * 30000),
            lambda: b"\x5e" + number + text(self.sftp()),
            lambda: b"\x5f" + number + self.number(1) + self.string(b"err"),
            lambda: b"\x60" + number,
            lambda: b"\x61" + number,
            lambda: b"\x63" + number,
            lambda: b"\x64" + number,
        )  # fmt: skip

    def request(self, name: bytes | None = None, number: bytes | None = None) -> bytes:
        """Message 98."""
        name = name or self.one(REQUESTS)
        sizes = self.number(80, 132) + self.number(24, 50) + self.number(640, 0) + self.number(480, 0)
        modes = b"".join(bytes([self.dice.randrange(256)]) + self.number(1, 13) for _ in range(self.dice.randrange(12))) + b"\0"
        body: dict[bytes, Callable[[], bytes]] = {
            b"pty-req": lambda: self.string(b"xterm", b"vt100") + sizes + self.string(modes),
            b"env": lambda: self.string(b"LANG", b"LC_ALL", b"LD_PRELOAD") + self.string(b"C.UTF-8"),
            b"exec": lambda: self.string(*COMMANDS),
            b"subsystem": lambda: self.string(b"sftp", b"sftp", b"netconf"),
            b"window-change": lambda: sizes,
            b"signal": lambda: self.string(b"TERM", b"INT", b"KILL", b"STOP"),
            b"break": lambda: self.number(100),
            b"xon-xoff": self.flag,
            b"exit-status": lambda: self.number(0),
            b"exit-signal": lambda: self.string(b"TERM") + self.flag() + self.string(b"") + self.string(b""),
            b"x11-req": lambda: self.flag() + self.string(b"MIT-MAGIC-COOKIE-1") + self.string(b"00" * 16) + self.number(0),
        }
        where = number if number is not None else self.number(0, 0, 1)
        return b"\x62" + where + self.string(name) + self.flag() + body.get(name, lambda: b"")()

    def sftp(self) -> bytes:
        """A packet for the box's sftp-server (draft-ietf-secsh-filexfer-02), one or several, cut anywhere."""
        kind = self.one((1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 200, 101, 105))
        path = self.string(b"/tmp/x", b".", b"/etc/passwd", b"/tmp/" + b"y" * 300)
        attributes = self.number(0, 1, 4, 0xF, 0x80000000) + self.dice.randbytes(self.one((0, 4, 8, 24)))
        place = self.string(b"\0\0\0\0") + self.number(0) * 2
        body = self.one((
            path, path + path, path + self.number(1, 2, 26) + attributes, place + self.number(32768),
            place + self.string(b"data" * 100), self.string(b"posix-rename@openssh.com") + path + path,
            self.string(b"statvfs@openssh.com") + path, attributes,
        ))  # fmt: skip
        whole = bytes([kind]) + (self.number(3) if kind == 1 else self.number(1, 2) + body)
        packet = (self.number(len(whole)) if self.rarely(0.05) else u32(len(whole))) + whole
        return packet[: self.dice.randrange(1, len(packet))] if self.rarely(0.1) else packet

    def unknown(self) -> bytes:
        """A message by any number."""
        return bytes([self.dice.randrange(256)]) + self.blob()

    # ---- mutation

    def mutated(self, data: bytes) -> bytes:
        """The same, wrong in a place or two."""
        for _ in range(self.one((1, 1, 1, 2, 5))):
            at = self.dice.randrange(len(data) + 1)
            data = self._wrong_at(data, at)
        return data[:60000]

    def _wrong_at(self, data: bytes, at: int) -> bytes:
        return self.any_of(
            lambda: data[:at] + bytes([self.dice.randrange(256)]) + data[at + 1 :],
            lambda: data[:at],
            lambda: data[:at] + self.blob() + data[at:],
            lambda: data[:at] + u32(self.one(EDGES)) + data[at + 4 :],
            lambda: data[:at] + data[at + self.one((1, 4, 9)) :],
            lambda: data + data[at:],
        )

    def packet(self, payload: bytes) -> Step:
        """A step that sends it: most often as it must be."""
        if self.rarely(0.25):
            payload = self.mutated(payload)
        if self.rarely(0.03):
            lie = self.one((0, 0, 1, -1, -5, 7, 2**20, -len(payload)))
            return Step("frame", payload, lie, self.one((None, None, 0, 3, 255)), self.one((0, 0, 1, 0x80)))
        return Step("packet", payload)

    # ---- cases

    def case(self) -> Case:
        """A whole case."""
        depth: Depth = self.one(("connected", "identified", "keyed", "keyed", "authenticated", "authenticated", "authenticated"))
        steps = {
            "connected": self.before_anything,
            "identified": self.before_keys,
            "keyed": self.before_login,
            "authenticated": self.logged_in,
        }[depth]()
        if self.rarely():
            steps.insert(self.dice.randrange(len(steps) + 1), Step(self.one(("deaf", "pause", "eof"))))
        return Case(depth, tuple(steps), compressed=depth == "authenticated" and self.rarely(0.25))

    def before_anything(self) -> list[Step]:
        """Identification strings, and what is none."""
        usual = (
            b"SSH-2.0-OpenSSH_9.2p1\r\n",
            b"SSH-2.0-Go\n",
            b"SSH-1.99-x\r\n",
            b"SSH-1.5-x\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"\x16\x03\x01\x02\0",
        )
        line = self.one(usual)
        if self.rarely(0.6):
            line = self.mutated(line)
        if self.rarely(0.2):
            line = self.one((b"comment\r\n", b"x" * 9000, b"\0" * 100, b"\n" * 3000)) + line
        pieces = [line[:at] for at in (self.dice.randrange(len(line) + 1),)] + [line]
        sent = [Step("wire", pieces[0]), Step("wire", line[len(pieces[0]) :])] if self.rarely(0.3) else [Step("wire", line)]
        return sent + [self.plain() for _ in range(self.dice.randrange(4))]

    def plain(self) -> Step:
        """A packet, framed by hand without encryption."""
        payload = self.one((self.kexinit, self.kex, self.transport, self.userauth, self.message))()
        if self.rarely(0.3):
            payload = self.mutated(payload)
        padding = self.one((4, 4, 8, 0, 255))
        body = bytes([padding]) + payload + bytes(padding if not self.rarely() else 3)
        length = u32(len(body)) if not self.rarely(0.15) else self.number(0, 1, 5, len(body) + 1)
        return Step("wire", length + body)

    def before_keys(self) -> list[Step]:
        """Key exchange, out of order and out of bounds."""
        made: list[Callable[[], bytes]] = [self.kexinit, self.kex, self.transport, self.message]
        return [self.packet(self.one(made)()) for _ in range(self.dice.randrange(1, 8))]

    def before_login(self) -> list[Step]:
        """The service request, mostly, and then logins of every kind."""
        steps = [Step("packet", b"\x05" + text(b"ssh-userauth"))] if not self.rarely() else []
        for _ in range(self.dice.randrange(1, 10)):
            steps.append(self.packet(self.userauth() if not self.rarely(0.2) else self.message()))
            if self.rarely(0.1):
                steps.append(Step("pause"))
        if self.rarely(0.3):
            steps.append(Step("packet", b"\x3d" + u32(1) + text(self.one((b"root", b"x")))))
        return steps

    def logged_in(self) -> list[Step]:
        """Channels and their requests in a sensible order, and then in another."""
        steps: list[Step] = []
        for number in range(self.one((1, 1, 1, 2, 3, 12))):
            steps += self.channel_story(u32(number))
        for _ in range(self.one((0, 2, 6, 20))):
            steps.insert(self.dice.randrange(len(steps) + 1), self.packet(self.message()))
        if self.rarely(0.15):
            steps.insert(self.dice.randrange(len(steps) + 1), Step("rekey"))
        if self.rarely(0.15):
            self.dice.shuffle(steps)
        if self.rarely(0.15):
            at = self.dice.randrange(len(steps))
            steps[at:at] = [steps[at]] * self.one((1, 2, 200))
        return steps

    def channel_story(self, number: bytes) -> list[Step]:
        """What a client does with a channel."""
        kind = self.one((b"shell", b"exec", b"exec", b"subsystem"))
        steps = [self.packet(b"\x5a" + text(b"session") + number + u32(2**21) + u32(32768))]
        steps += [self.packet(self.request(b"env", number)) for _ in range(self.dice.randrange(3))]
        if kind == b"shell" or self.rarely(0.3):
            steps.append(self.packet(self.request(b"pty-req", number)))
        if kind == b"subsystem":
            steps.append(Step("packet", b"\x62" + number + text(kind) + b"\1" + text(b"sftp")))
            steps.append(Step("packet", b"\x5e" + number + text(u32(5) + b"\1" + u32(3))))
            steps += [self.packet(b"\x5e" + number + text(self.sftp())) for _ in range(self.dice.randrange(8))]
        else:
            steps.append(self.packet(self.request(kind, number)))
            steps += [self.packet(b"\x5e" + number + self.string(b"echo x\n", b"exit\n")) for _ in range(self.dice.randrange(4))]
        steps += [self.packet(self.request(self.one(REQUESTS), number)) for _ in range(self.dice.randrange(3))]
        if self.rarely(0.3):
            steps.append(Step("pause"))
        ends = [b"\x60" + number, b"\x61" + number]
        return steps + [self.packet(end) for end in ends if not self.rarely(0.4)]


def generate(seed: int) -> Case:
    """The case of a seed."""
    case = Grammar(seed).case()
    return Case(case.depth, case.steps, case.compressed, note=f"seed {seed}")


def relative(case: Case, seed: int) -> Case:
    """A case much like a kept one: its packets mutated, doubled, left out, or followed by others."""
    grammar = Grammar(seed)
    steps: list[Step] = []
    for step in case.steps:
        if grammar.rarely(0.1):
            continue
        mutable = step.kind in ("packet", "wire") and grammar.rarely(0.2)
        steps.append(Step(step.kind, grammar.mutated(step.data)) if mutable else step)
        if grammar.rarely(0.05):
            steps.append(steps[-1])
        if grammar.rarely(0.1) and case.depth != "connected":
            steps.append(grammar.packet(grammar.message()))
    return Case(case.depth, tuple(steps), case.compressed, note=f"seed {seed}, from {case.note or 'a kept case'}")
