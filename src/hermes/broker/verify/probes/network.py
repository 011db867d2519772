"""Attacks on the network: every way out of the box that a socket could be. The host listens at the other end."""

import os
import socket
import struct

from hermes.broker.verify.box import Agent, Out, Reply, Untried
from hermes.broker.verify.canaries import Canary, sockaddr_in, sockaddr_in6
from hermes.broker.verify.host import interfaces, routes
from hermes.broker.verify.probe import USERS, Attack, Breach, probe

NONBLOCK = 0o4000 | 0o2000000
RESOLVERS = ("1.1.1.1", "8.8.8.8", "169.254.169.254")
"""Resolvers that the box's resolv.conf names, and the address where clouds tell their secrets."""


async def _reach(it: Attack, canaries: list[Canary]) -> str:
    """Try to reach each canary, as everybody; say which answered or got something."""
    if not canaries:
        raise Untried("the host has no such canary")
    token = it.host.canaries.token.encode()
    reached = []
    for user in USERS:
        one = await it.agent(user)
        for canary in canaries:
            made = await one.call("socket", canary.family, canary.kind | NONBLOCK, 0)
            if not made.ok:
                raise Untried(f"{user} gets no socket for {canary.name} ({made.error})")
            address = canary.sockaddr
            reply = await one.call("connect", made.value, address, len(address))
            sent = await one.call("sendto", made.value, token, len(token), 0x4000, 0, 0)
            await one.call("close", made.value)
            if canary.kind == socket.SOCK_STREAM and (reply.ok or sent.ok):
                reached.append(canary.name)
    reached += it.host.canaries.touched()
    if reached:
        raise Breach(f"the box reaches {', '.join(sorted(set(reached)))}")
    return f"none of {len(canaries)} sockets of the host is reached"


def _canaries(it: Attack, family: socket.AddressFamily, kind: socket.SocketKind | None = None) -> list[Canary]:
    return [one for one in it.host.canaries.sockets if one.family == family and kind in (None, one.kind)]


@probe("tcp", quick=True)
async def tcp(it: Attack) -> str:
    """Connect to TCP ports of the host: on its loopback, and on each of its addresses."""
    return await _reach(it, _canaries(it, socket.AF_INET, socket.SOCK_STREAM))


@probe("udp", quick=True)
async def udp(it: Attack) -> str:
    """Send to UDP ports of the host, on the same addresses."""
    return await _reach(it, _canaries(it, socket.AF_INET, socket.SOCK_DGRAM))


@probe("ipv6", quick=True)
async def ipv6(it: Attack) -> str:
    """Reach the host by IPv6, TCP and UDP; where the host has no IPv6, an address of documentation."""
    if canaries := _canaries(it, socket.AF_INET6):
        await _reach(it, canaries)
    one = await it.agent()
    address = sockaddr_in6("2001:db8::1", 53)
    made = await one.call("socket", socket.AF_INET6, socket.SOCK_DGRAM | NONBLOCK, 0)
    if made.ok:
        sent = await one.call("sendto", made.value, b"canary", 6, 0x4000, address, len(address))
        await one.call("close", made.value)
        if sent.ok:
            raise Breach("the box sends IPv6 packets")
    return f"none of {len(canaries)} sockets is reached, and no route leads out"


@probe("abstract-sockets", quick=True)
async def abstract_sockets(it: Attack) -> str:
    """Connect to an abstract unix socket of the host, which only a network namespace keeps apart."""
    return await _reach(it, [one for one in _canaries(it, socket.AF_UNIX) if one.port < 0])


@probe("socket-files", quick=True)
async def socket_files(it: Attack) -> str:
    """Connect to a unix socket of the host by its path, as to Docker's or systemd's."""
    return await _reach(it, [one for one in _canaries(it, socket.AF_UNIX) if one.port >= 0])


@probe("interfaces", quick=True)
async def network_interfaces(it: Attack) -> str:
    """Find a network interface besides lo, or a route out."""
    pid = it.target.box.pid
    if pid:
        found, out = set(interfaces(pid)), routes(pid)
        if not found:
            raise Untried("the box's network cannot be looked at")
    else:
        ran = await it.target.run(b"sh", b"-c", b"cat /proc/self/net/dev")
        found = {line.partition(b":")[0].strip().decode() for line in ran.stdout.splitlines()[2:]}
        out = []
        if not found:
            raise Untried(f"/proc/net/dev cannot be read: {ran.text}")
    strange = {
        name for name in found - {"lo"} if not name.startswith(("tunl", "sit", "gre", "erspan", "ip_vti", "ip6", "gretap"))
    }
    if strange or out:
        raise Breach(f"the box has {', '.join(sorted(strange)) or 'lo'}{', and routes to ' + ', '.join(out) if out else ''}")
    return "lo, and no route"


@probe("dns", quick=True)
async def dns(it: Attack) -> str:
    """Ask a resolver for a name, and a cloud's metadata service for its secrets."""
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06hermes\x07invalid\x00\x00\x01\x00\x01"
    before = _sent(it)
    for user in USERS:
        one = await it.agent(user)
        made = await one.call("socket", socket.AF_INET, socket.SOCK_DGRAM | NONBLOCK, 0)
        if not made.ok:
            raise Untried(f"{user} gets no socket ({made.error})")
        for resolver in RESOLVERS:
            address = sockaddr_in(resolver, 53)
            sent = await one.call("sendto", made.value, query, len(query), 0x4000, address, len(address))
            if sent.ok:
                raise Breach(f"{user} can send to {resolver}")
        await one.call("close", made.value)
    if _sent(it) != before:
        raise Breach("packets left the box")
    return f"no route to {', '.join(RESOLVERS)}"


def _sent(it: Attack) -> int:
    """Packets that the box's interfaces besides lo sent."""
    found = interfaces(it.target.box.pid) if it.target.box.pid else {}
    return sum(sent for name, (_, sent) in found.items() if name != "lo")


_PING = b"\x08\x00\xf7\xff\x00\x00\x00\x00"
_IP_PACKET = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20, 0, 0, 64, 17, 0, bytes(4), socket.inet_aton(RESOLVERS[0]))


@probe("raw-sockets", quick=True)
async def raw_sockets(it: Attack) -> str:
    """Send packets made by hand: ICMP, and whole IP packets with a false sender."""
    before = _sent(it)
    one = await it.agent()
    tried = []
    for family, protocol, address in (
        (socket.AF_INET, 1, sockaddr_in(RESOLVERS[0], 0)),
        (socket.AF_INET, 255, sockaddr_in(RESOLVERS[0], 0)),
        (socket.AF_INET6, 58, sockaddr_in6("2001:db8::1", 0)),
    ):
        made = await one.call("socket", family, socket.SOCK_RAW | NONBLOCK, protocol)
        if not made.ok:
            tried.append(made.error)
            continue
        packet = _IP_PACKET if protocol == 255 else _PING
        sent = await one.call("sendto", made.value, packet, len(packet), 0x4000, address, len(address))
        await one.call("close", made.value)
        tried.append(sent.error)
        if sent.ok:
            raise Breach(f"root can send packets of protocol {protocol}")
    if _sent(it) != before:
        raise Breach("packets left the box")
    return f"{', '.join(dict.fromkeys(tried))}"


async def _no_socket(it: Attack, family: int, kinds: tuple[int, ...], protocols: tuple[int, ...]) -> None:
    for user in USERS:
        one = await it.agent(user)
        wanted = [(family | high, kind, protocol) for kind in kinds for protocol in protocols for high in (0, 1 << 40)]
        for asked, made in zip(wanted, await one.batch(*(("socket", *it) for it in wanted)), strict=True):
            if made.ok:
                await one.call("close", made.value)
                raise Breach(f"{user} gets a socket of family {family}, type {asked[1]}, protocol {asked[2]}")


@probe("vsock", quick=True)
async def vsock(it: Attack) -> str:
    """Talk to the hypervisor under the machine (AF_VSOCK), which no namespace hides."""
    await _no_socket(it, 40, (1, 2, 5), (0,))
    return "no such socket"


@probe("packet-sockets", quick=True)
async def packet_sockets(it: Attack) -> str:
    """Read and write whole frames (AF_PACKET)."""
    await _no_socket(it, socket.AF_PACKET, (2, 3), (0, 0x0300))
    return "no such socket"


@probe("netlink", quick=True)
async def netlink(it: Attack) -> str:
    """Talk to the kernel by netlink protocols beyond routes: firewall, audit, devices, cryptography."""
    await _no_socket(it, socket.AF_NETLINK, (2, 3), tuple(range(1, 23)))
    return "none of 22 protocols beyond NETLINK_ROUTE"


@probe("socket-families", quick=True)
async def socket_families(it: Attack) -> str:
    """Use any other family of sockets, for each of which the host would load a module with bugs of its own."""
    known = {int(socket.AF_UNIX), int(socket.AF_INET), int(socket.AF_INET6), int(socket.AF_NETLINK)}
    for family in sorted(set(range(46)) - known):
        await _no_socket(it, family, (1, 2, 3, 5), (0,))
    for protocol in (132, 33, 136, 262):  # SCTP, DCCP, UDP-Lite, MPTCP
        await _no_socket(it, socket.AF_INET, (1, 2, 5, 6), (protocol,))
    return f"none of {46 - len(known)} families"


@probe("network-setup", quick=True)
async def network_setup(it: Attack) -> str:
    """Make an interface, an address or a route, a tunnel, or a firewall rule."""
    await it.unopened("/dev/net/tun", flags=os.O_RDWR)
    one = await it.agent()
    made = await one.call("socket", socket.AF_INET, socket.SOCK_DGRAM, 0)
    if not made.ok:
        raise Untried(f"root gets no socket ({made.error})")
    up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)
    replies = {
        "change an interface": (await one.call("ioctl", made.value, 0x8914, up.ljust(40, b"\0"))).error,
        "make a bridge": (await one.call("ioctl", made.value, 0x89A0, b"verify0".ljust(16, b"\0"))).error,
        "set a firewall": (await one.call("setsockopt", made.value, 0, 64, bytes(40), 40)).error,
        "make an interface": await _new_link(one),
    }
    await one.call("close", made.value)
    for what, reply in replies.items():
        if reply in ("success", "EEXIST"):
            raise Breach(f"root can {what}")
    return f"{', '.join(f'{what}: {reply}' for what, reply in replies.items())}"


async def _new_link(one: Agent) -> str:
    """What the kernel says to a request for a dummy interface."""
    made = await one.call("socket", socket.AF_NETLINK, socket.SOCK_RAW, 0)
    if not made.ok:
        return made.error
    kind = struct.pack("<HH", 9, 1) + b"dummy\0\0\0"
    info = struct.pack("<HH", 4 + len(kind), 18) + kind
    body = struct.pack("<BxHiII", 0, 0, 0, 0, 0) + info
    message = struct.pack("<IHHII", 16 + len(body), 16, 0x605, 1, 0) + body
    await one.call("sendto", made.value, message, len(message), 0, 0, 0)
    reply = await one.call("recvfrom", made.value, Out(256), 256, 0, 0, 0)
    await one.call("close", made.value)
    code = struct.unpack_from("<i", reply.out[0], 16)[0] if reply.ok else reply.value
    return Reply(code, 0).error
