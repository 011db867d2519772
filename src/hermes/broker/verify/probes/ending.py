"""What must be true when everything else has been tried: the host is as it was, and the box's own walls still stand."""

from hermes.broker.verify.host import interfaces, spawners
from hermes.broker.verify.probe import Attack, Breach, probe
from hermes.errors import EngineError


@probe("host-unchanged", quick=True)
async def host_unchanged(it: Attack) -> str:
    """Change anything on the host by all that came before: its name, its clock, its kernel's settings, its swap, its runtime."""
    if changed := it.host.changes():
        raise Breach("; ".join(changed))
    return f"{len(it.host.before)} settings and files of the host are as they were"


@probe("canaries-untouched", quick=True)
async def canaries_untouched(it: Attack) -> str:
    """Reach any socket of the host's by all that came before, or send a packet."""
    if touched := it.host.canaries.touched():
        raise Breach(f"something came to {', '.join(touched)}")
    pid = it.target.box.pid
    sent = {name: counts[1] for name, counts in interfaces(pid).items() if name != "lo" and counts[1]} if pid else {}
    if sent:
        raise Breach(f"the box sent packets: {sent}")
    return f"nothing came to {len(it.host.canaries.sockets)} sockets, and no packet left"


@probe("spawner-alive", quick=True)
async def spawner_alive(it: Attack) -> str:
    """Kill the process that starts the box's processes: with a signal to everyone, as root."""
    before = {process.pid for process in spawners(it.target.box.pid)} if it.target.box.pid else set()
    async with it.target.own() as own:
        await own.call("kill", -1, 9 if it.may_kill_all else 0)
    try:
        ran = await it.target.run(b"sh", b"-c", b"echo alive")
    except EngineError as error:
        raise Breach(f"the spawner was killed from inside: {error}") from None
    after = {process.pid for process in spawners(it.target.box.pid)} if it.target.box.pid else set()
    if b"alive" not in ran.stdout or not before <= after:
        raise Breach("the spawner was killed from inside")
    return "it still starts processes"
