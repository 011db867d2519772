"""What holds for the processes of a box, whatever engine made it."""

import asyncio
import hashlib
import os
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hermes.container import Terminal
from hermes.container.messages import Resize, Signal, Spawn, encode
from hermes.errors import SpawnError
from hermes.testing.boxes import BoxClient, Result, eventually
from tests.engine.conftest import Case

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(120, func_only=True),  # the first test that needs the image may wait for it to be built
]

EXACT = b'for a in "$@"; do printf "<%s>" "$a"; done'
SHELLS_OWN = {b"PWD", b"OLDPWD", b"SHLVL", b"_"}


def ended_by(result: Result, signal: str, number: int, case: Case) -> bool:
    if case.exact_signals:
        return result.exit.signal == signal
    return result.exit.signal == signal or result.status == 128 + number


def environment(result: Result) -> dict[bytes, bytes]:
    assert result.status == 0, result
    return dict(entry.split(b"=", 1) for entry in result.stdout.split(b"\0") if entry)


@pytest_asyncio.fixture(loop_scope="module")
async def alice(client: BoxClient, case: Case) -> AsyncIterator[str]:
    """An ordinary user of the box, in a second group, whose login shell is /bin/sh."""
    if not case.isolated:
        pytest.skip("its users are the host's")
    await client.output("groupadd -g 4400 crew && useradd -m -u 4321 -s /bin/sh -G crew alice")
    yield "alice"


# ---- argv


@pytest.mark.parametrize(
    "args",
    [
        [b"one", b"two words", b"  "],
        [b"", b"", b"after two empty ones"],
        [b"it's", b'say "no"', b"$HOME `id` $(id) \\ \\n \\0101 %s *", b"~", b"-n", b"--", b"=x", b"+x"],
        [b"two\nlines\n", b"\ttab", b"\n", b"trailing\n\n"],
        [b"\xff\xfe\x80", b"caf\xc3\xa9", b"half \xc3", b"\x01\x1b[31m\x7f", b"\xff\n\n", b"\\\xff\\0101\\c%"],
        [bytes(range(1, 256))],
        [b"x" * 100 * 1024, b"y"],
    ],
    ids=["words", "empty", "quotes", "newlines", "not-utf8", "every-byte", "100KiB"],
)
async def test_argv_is_exact(client: BoxClient, args: list[bytes]) -> None:
    result = await client.run(None, b"/bin/sh", b"-c", EXACT, b"sh", *args)
    assert result.stderr == b""
    assert result.stdout == b"".join(b"<" + arg + b">" for arg in args)
    assert result.status == 0


async def test_argv_is_searched_in_path(client: BoxClient) -> None:
    assert (await client.run(None, b"printf", b"%s", b"a b")).stdout == b"a b"


async def test_argument_too_long_fails(client: BoxClient, case: Case) -> None:
    if not case.linux:
        pytest.skip("its kernel takes longer ones")
    with pytest.raises(SpawnError):
        await client.run(None, b"true", b"x" * 150 * 1024)
    assert (await client.run(None, b"true")).status == 0


@pytest.mark.parametrize("name", [b"no-such-program-anywhere", b"/no/such/program", b"/etc/passwd", b"/etc"])
async def test_argv_that_cannot_run_fails(client: BoxClient, name: bytes) -> None:
    with pytest.raises(SpawnError):
        await client.run(None, name)


async def test_argument_with_nul_fails(client: BoxClient) -> None:
    with pytest.raises(SpawnError):
        await client.run(None, b"echo", b"a\0b")
    with pytest.raises(SpawnError):
        await client.run(b"echo a\0b")


# ---- commands and shells


async def test_command_runs_in_the_login_shell(client: BoxClient, case: Case) -> None:
    result = await client.run('echo "$0|$SHELL|it\'s"; echo $((6*7))')
    shell, name = result.stdout.split(b"\n")[0].split(b"|")[:2]
    assert shell.rpartition(b"/")[2] == name.rpartition(b"/")[2]
    assert result.stdout.endswith(b"|it's\n42\n")


@pytest.mark.parametrize("command", [b"printf '%s' '\xff\xfe'", b"printf '%s' '\n\n\xff\n\\0101'", b"printf '%s' '\xc3\xa9'"])
async def test_command_bytes_are_exact(client: BoxClient, command: bytes) -> None:
    assert (await client.run(command)).stdout == command.split(b"'")[3].replace(b"\\\\", b"\\")


async def test_command_not_found_is_127(client: BoxClient) -> None:
    result = await client.run("no-such-command-anywhere")
    assert result.status == 127
    assert b"no-such-command-anywhere" in result.stderr


async def test_empty_command_runs(client: BoxClient) -> None:
    result = await client.run("")
    assert (result.status, result.stdout) == (0, b"")


async def test_login_shell_reads_a_script(client: BoxClient) -> None:
    result = await client.run(stdin=b"echo $0\nexit 3\n")
    assert result.stdout.startswith(b"-")
    assert result.status == 3


async def test_login_shell_on_a_terminal(client: BoxClient) -> None:
    shell = await client.start(terminal=Terminal(term="vt100"))
    await shell.write(b"echo first-$0-$TERM-last\n")
    seen = await shell.read_until(b"-vt100-last")
    assert re.search(rb"first--[a-z]*sh-vt100-last", seen)
    await shell.write(b"exit 5\n")
    assert (await shell.wait()).status == 5
    shell.close()


# ---- environment and working directory


async def test_environment_is_a_logins_and_nothing_else(client: BoxClient, alice: str) -> None:
    env = environment(await client.run("env -0", user=alice))
    want = {b"USER": b"alice", b"LOGNAME": b"alice", b"HOME": b"/home/alice", b"SHELL": b"/bin/sh", b"MAIL": b"/var/mail/alice"}
    assert {name: env.get(name) for name in want} == want
    assert b"/bin" in env[b"PATH"].split(b":")
    assert set(env) - SHELLS_OWN == {*want, b"PATH"}


async def test_root_may_use_sbin(client: BoxClient, case: Case) -> None:
    if not case.isolated:
        pytest.skip("its environment is the test's")
    env = environment(await client.run("env -0"))
    assert b"/usr/sbin" in env[b"PATH"].split(b":")
    assert (env[b"HOME"], env[b"USER"]) == (b"/root", b"root")


async def test_asked_environment_overrides_and_is_exact(client: BoxClient) -> None:
    asked = {b"LANG": b"de_DE.UTF-8", b"HOME": b"/tmp", b"ODD": b"a=b c\n'\"$x`\\0101\n", b"RAW": b"\xff\xfe\n\n", b"EMPTY": b""}
    env = environment(await client.run("env -0", env=asked, cwd=b"/"))
    assert {name: env.get(name) for name in asked} == asked


async def test_terminal_environment(client: BoxClient, case: Case) -> None:
    result = await client.run('echo "$TERM:$(tty):$SSH_TTY:"', terminal=Terminal(term="xterm-256color"))
    term, tty, ssh_tty, _ = result.stdout.decode().strip().split(":")
    assert term == "xterm-256color"
    if not case.named_terminal:
        assert ssh_tty == "", "it names none rather than a wrong one"
        return
    assert re.fullmatch(r"/dev/pts/\d+", tty)
    assert ssh_tty == tty


async def test_working_directory(client: BoxClient, case: Case) -> None:
    if case.isolated:
        assert await client.output("pwd") == "/root"
    assert (await client.run("pwd", cwd=b"/usr/bin")).stdout == b"/usr/bin\n"
    assert (await client.run("pwd", cwd=b"/no/such/place")).stdout == b"/\n"
    assert (await client.run("pwd", cwd=b"/etc/passwd")).stdout == b"/\n"
    odd = b"/tmp/it's a \xff $(id)\n dir"
    assert (await client.run(None, b"mkdir", b"-p", b"--", odd)).status == 0
    assert (await client.run(None, b"pwd", cwd=odd)).stdout == odd + b"\n"
    assert (await client.run(None, b"rmdir", odd)).status == 0


# ---- users


async def test_root(client: BoxClient, case: Case) -> None:
    if not case.isolated:
        pytest.skip("its users are the host's")
    assert await client.output("id -u; id -g") == "0\n0"


async def test_ordinary_user(client: BoxClient, alice: str) -> None:
    assert await client.output("id -un; id -u; id -G; pwd", user=alice) == "alice\n4321\n4321 4400\n/home/alice"
    result = await client.run("cat /etc/shadow", user=alice)
    assert result.status != 0
    assert result.stdout == b""


async def test_ordinary_user_on_a_terminal(client: BoxClient, case: Case, alice: str) -> None:
    if not case.named_terminal:
        result = await client.run("id -un; test -t 0 && echo works", user=alice, terminal=Terminal())
        assert result.stdout == b"alice\r\nworks\r\n"
        return
    result = await client.run("id -un; echo works > $(tty); test -O $(tty) && echo owned", user=alice, terminal=Terminal())
    assert result.stdout == b"alice\r\nworks\r\nowned\r\n"


async def test_capabilities_are_not_an_ordinary_users(client: BoxClient, alice: str) -> None:
    status = await client.output("cat /proc/self/status", user=alice)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)


async def test_unknown_user_is_made(client: BoxClient, case: Case) -> None:
    if not case.isolated:
        pytest.skip("its users are the host's")
    first = await client.output("id -un; id -u; echo $HOME; pwd; echo ~mallory; test -w . && echo mine", user="mallory")
    name, uid, home, cwd, tilde, mine = first.split("\n")
    assert (name, home, cwd, tilde, mine) == ("mallory", "/home/mallory", "/home/mallory", "/home/mallory", "mine")
    assert int(uid) >= 1000
    assert await client.output("id -u", user="mallory") == uid


@pytest.mark.parametrize("name", ["", "0", "no such", "../root", "-x", "a:b", "root:0", "x" * 100, "é", "a\nb", "a/b", "$(id)"])
async def test_impossible_user_fails(client: BoxClient, case: Case, name: str) -> None:
    if not case.isolated:
        pytest.skip("its users are the host's")
    before = await client.output("cat /etc/passwd")
    with pytest.raises(SpawnError):
        await client.run("id", user=name)
    assert await client.output("cat /etc/passwd") == before


# ---- the end of a process


async def test_exit_codes(client: BoxClient, case: Case) -> None:
    codes = range(256) if case.exact_signals else [0, 1, 2, 42, 126, 127, 128, 129, 137, 143, 254, 255]
    gate = asyncio.Semaphore(8)

    async def status(code: int) -> tuple[int | None, str | None]:
        async with gate:
            ended = (await client.run(None, b"/bin/sh", b"-c", b"exit %d" % code)).exit
            return ended.status, ended.signal

    assert await asyncio.gather(*map(status, codes)) == [(code, None) for code in codes]


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("HUP", 1), ("USR1", 10)])
async def test_end_by_a_signal_is_told(client: BoxClient, case: Case, name: str, number: int) -> None:
    assert ended_by(await client.run(f"kill -{name} $$"), name, number, case)


@pytest.mark.parametrize(("name", "number"), [("TERM", 15), ("INT", 2), ("KILL", 9), ("HUP", 1)])
async def test_signals_by_name(client: BoxClient, name: str, number: int) -> None:
    process = await client.start(None, b"/bin/sh", b"-c", b"echo ready; exec sleep 1000")
    await process.read_until(b"ready\n")
    process.process.signal(name)
    ended = (await process.result(None)).exit
    assert ended.signal == name or ended.status == 128 + number


async def test_a_signal_can_be_handled(client: BoxClient) -> None:
    script = "trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.1; done"
    process = await client.start(None, b"/bin/sh", b"-c", script.encode())
    await process.read_until(b"ready\n")
    process.process.signal("USR1")
    # The shell waits for its `sleep`, which the signal ended as well.
    result = await process.result(None)
    assert (result.status, result.stdout.split()[-1]) == (7, b"caught")


async def test_unknown_signals_and_processes_are_ignored(client: BoxClient) -> None:
    cat = await client.start("cat")
    packets = client.container._packets
    for message in (
        Signal(id=cat.process.id, signal="NOSUCH"),
        Signal(id=cat.process.id, signal="9; id"),
        Signal(id=cat.process.id, signal=""),
        Signal(id=999_999, signal="KILL"),
        Resize(id=999_999, width=1, height=1),
        Resize(id=cat.process.id, width=100, height=10),
    ):
        assert packets.send(encode(message))
    result = await cat.result(b"still here")
    assert (result.stdout, result.status) == (b"still here", 0)


# ---- terminals


async def test_terminal_is_one(client: BoxClient, case: Case) -> None:
    terminal = "/dev/tty" if case.named_terminal else "&2"
    script = f"for fd in 0 1 2; do test -t $fd || echo no $fd; done; echo to-the-terminal >{terminal}; stty size"
    result = await client.run(script, terminal=Terminal(width=97, height=31))
    assert result.stdout == b"to-the-terminal\r\n31 97\r\n"


async def test_without_terminal_there_is_none(client: BoxClient) -> None:
    result = await client.run(
        "for fd in 0 1 2; do test -t $fd && echo tty $fd; done; (: < /dev/tty) 2>/dev/null && echo controlling; :"
    )
    assert result.stdout == b""


async def test_terminal_modes(client: BoxClient) -> None:
    asked = {53: 0, 3: 0x15, 91: 1}  # ECHO off, VERASE ^U, CS8 on
    result = await client.run("stty -a", terminal=Terminal(modes=asked))
    assert re.search(rb"(?<!\S)-echo(?!\S)", result.stdout)
    assert b"erase = ^U" in result.stdout
    assert re.search(rb"(?<!\S)echo(?!\S)", (await client.run("stty -a", terminal=Terminal())).stdout)


async def test_terminal_of_an_odd_size(client: BoxClient) -> None:
    assert (await client.run("stty size", terminal=Terminal(width=0, height=0))).stdout == b"0 0\r\n"
    assert (await client.run("stty size", terminal=Terminal(width=65535, height=65535))).stdout == b"65535 65535\r\n"


async def test_resize(client: BoxClient, case: Case) -> None:
    script = "trap 'stty size; exit' WINCH; stty size; echo ready; while :; do sleep 0.05; done"
    process = await client.start(None, b"/bin/sh", b"-c", script.encode(), terminal=Terminal(width=80, height=24))
    assert b"24 80" in await process.read_until(b"ready\r\n")
    assert process.process.tty is case.real_terminal
    process.process.resize(132, 50)
    await process.read_until(b"50 132\r\n")
    assert (await process.wait()).status == 0
    process.close()


async def test_resize_at_once_is_not_lost(client: BoxClient) -> None:
    script = "until test \"$(stty size)\" = '41 101'; do sleep 0.05; done; echo arrived"
    process = await client.start(script, terminal=Terminal(width=80, height=24))
    for width in range(81, 90):
        process.process.resize(width, 40)
    process.process.resize(101, 41)
    await process.read_until(b"arrived\r\n")
    assert (await process.wait()).status == 0
    process.close()


async def test_interrupt_key(client: BoxClient) -> None:
    process = await client.start("echo ready; sleep 1000", terminal=Terminal())
    await process.read_until(b"ready\r\n")
    await process.write(b"\x03")
    ended = await process.wait()
    assert ended.signal == "INT" or ended.status == 130
    process.close()


async def test_end_of_file_key(client: BoxClient) -> None:
    process = await client.start("cat; echo after", terminal=Terminal())
    await process.write(b"line\n")
    await process.read_until(b"line\r\nline\r\n")
    await process.write(b"\x04")
    await process.read_until(b"after\r\n")
    assert (await process.wait()).status == 0
    process.close()


async def test_closing_the_terminal_hangs_up(client: BoxClient) -> None:
    await client.run("rm -f /tmp/hung-up")
    script = "trap 'echo hup > /tmp/hung-up; exit 0' HUP; echo ready; while :; do sleep 0.05; done"
    process = await client.start(None, b"/bin/sh", b"-c", script.encode(), terminal=Terminal())
    await process.read_until(b"ready\r\n")
    process.close()
    await process.wait()
    assert (await client.run("cat /tmp/hung-up; rm /tmp/hung-up")).stdout == b"hup\n"


async def test_much_output_through_a_terminal(client: BoxClient) -> None:
    result = await client.run("stty -opost; yes 0123456789abcdef | head -c 3000000", terminal=Terminal())
    assert result.stdout == (b"0123456789abcdef\n" * 176471)[:3_000_000]


# ---- streams


async def test_stdout_and_stderr_are_apart(client: BoxClient) -> None:
    result = await client.run("echo out; echo err >&2; printf '\\377\\000'")
    assert (result.stdout, result.stderr) == (b"out\n\xff\0", b"err\n")


async def test_end_of_stdin_is_passed_on(client: BoxClient) -> None:
    assert (await client.run("cat")).status == 0
    result = await client.run("cat; echo end", stdin=b"\0\xff\r\n\x04data")
    assert result.stdout == b"\0\xff\r\n\x04dataend\n"


async def test_output_goes_on_after_the_end_of_stdin(client: BoxClient) -> None:
    result = await client.run("cat >/dev/null; sleep 0.2; echo late; echo later >&2; exit 4", stdin=b"x")
    assert (result.stdout, result.stderr, result.status) == (b"late\n", b"later\n", 4)


async def test_much_input_arrives(client: BoxClient) -> None:
    data = hashlib.shake_256(b"hermes").digest(5_000_000)
    result = await client.run("sha256sum", stdin=data)
    assert result.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()


async def test_much_output_arrives(client: BoxClient) -> None:
    result = await client.run("yes 0123456789abcdef | head -c 50000000")
    want = hashlib.sha256((b"0123456789abcdef\n" * 2941177)[:50_000_000]).hexdigest()
    assert len(result.stdout) == 50_000_000
    assert hashlib.sha256(result.stdout).hexdigest() == want
    assert result.status == 0


async def test_output_that_nobody_reads_stops_its_writer(client: BoxClient) -> None:
    await client.run("rm -f /tmp/written")
    script = 'i=0; line=$(printf %4000s x); while :; do printf %s "$line"; i=$((i+1)); echo $i > /tmp/written; done'
    process = await client.start(None, b"/bin/sh", b"-c", script.encode())
    seen = [-1]

    async def stopped() -> bool:
        seen.append(int((await client.run("cat /tmp/written")).stdout or 0))
        return 0 < seen[-1] == seen[-2]

    await eventually(stopped, interval=0.3)
    assert seen[-1] * 4000 < 16_000_000
    blocked_at = seen[-1]
    for _ in range(200):
        await process.read()

    async def goes_on() -> bool:
        return int((await client.run("cat /tmp/written")).stdout or 0) > blocked_at

    await eventually(goes_on)
    process.process.signal("KILL")
    process.close()
    await process.wait()


async def test_writing_to_a_closed_channel_ends_the_writer(client: BoxClient) -> None:
    process = await client.start("yes")
    await process.read()
    process.close()
    ended = await process.wait()
    assert ended.signal == "PIPE" or ended.status in {1, 141}


async def test_input_that_nobody_reads_hurts_nobody(client: BoxClient) -> None:
    process = await client.start("exec 0<&-; echo closed; sleep 1000")
    await process.read_until(b"closed\n")
    with pytest.raises((TimeoutError, OSError)):
        async with asyncio.timeout(1):
            await process.write(b"x" * 64_000_000)
    assert (await client.run("echo fine")).stdout == b"fine\n"
    process.process.signal("KILL")
    await process.wait()
    process.close()


# ---- many


async def test_twenty_at_once_are_not_mixed_up(client: BoxClient) -> None:
    async def piped(number: int) -> None:
        line = b"%d-" % number * 1000
        result = await client.run(f"cat; echo err-{number} >&2; exit {number}", stdin=line)
        assert (result.stdout, result.stderr, result.status) == (line, b"err-%d\n" % number, number)

    async def terminal(number: int) -> None:
        process = await client.start(f"echo here-{number}-; read line; exit $line", terminal=Terminal())
        await process.read_until(b"here-%d-\r\n" % number)
        await process.write(b"%d\n" % number)
        assert (await process.wait()).status == number
        process.close()

    await asyncio.gather(*(terminal(number) if number % 4 == 0 else piped(number) for number in range(1, 21)))


async def test_a_background_job_outlives_its_channel(client: BoxClient) -> None:
    script = "nohup sh -c 'sleep 0.5; echo done > /tmp/background' >/dev/null 2>&1 </dev/null & echo started"
    result = await client.run(script)
    assert (result.stdout, result.status) == (b"started\n", 0)

    async def done() -> bool:
        return (await client.run("cat /tmp/background")).stdout == b"done\n"

    await eventually(done, interval=0.1)
    await client.run("rm /tmp/background")


async def test_a_background_job_outlives_its_terminal(client: BoxClient) -> None:
    seconds = 1_000_000 + os.getpid()

    async def jobs() -> list[bytes]:
        found = await client.run(f"grep -al 'sleep.{seconds}' /proc/[0-9]*/cmdline | grep -v /self/")
        names = [path.split(b"/")[2].decode() for path in found.stdout.split()]
        exact = [await client.run(f"tr '\\0' ' ' < /proc/{name}/cmdline; echo {name} >&2") for name in names]
        return [result.stderr.strip() for result in exact if result.stdout.startswith(b"sleep ")]

    async def runs() -> bool:
        return len(await jobs()) == 1

    shell = await client.start(terminal=Terminal())
    await shell.write(b"setsid nohup sleep %d >/dev/null 2>&1 </dev/null &\n" % seconds)
    await eventually(runs, interval=0.1)
    shell.close()
    await shell.wait()
    (job,) = await jobs()
    await client.output(b"kill " + job)


# ---- hostile messages


@pytest.mark.parametrize(
    "packet",
    [
        b"\x00",
        b"\xc1" * 100,
        b"\x80",
        b"\x81\xa4type\xa5Spawn",
        b"x" * 100_000,
        b"\x9f" * 20_000,
        encode(Signal(id=1, signal="x"))[:-1],
    ],
    ids=["nul", "garbage", "no-type", "no-fields", "100KB", "deep", "cut-short"],
)
async def test_garbage_on_the_box_socket_hurts_no_process(client: BoxClient, packet: bytes) -> None:
    cat = await client.start("cat")
    await cat.write(b"before\n")
    await cat.read_until(b"before\n")
    client.container._packets.send(packet)
    for line in (b"one\n", b"two\n"):
        await cat.write(line)
        await cat.read_until(line)
    cat.close()


async def test_impossible_requests_fail_alone(client: BoxClient) -> None:
    huge = {b"V%d" % i: b"x" * 1000 for i in range(150)}
    cat = await client.start("cat")
    for spawn in (
        client.run("true", env={b"": b"x"}),
        client.run("true", env={b"A=B": b"x"}),
        client.run("true", env={b"NUL": b"a\0b"}),
        client.run("true", env=huge),
        client.run("true", cwd=b"/\0"),
        client.run("true", terminal=Terminal(term="x" * 5000, width=-5, height=1 << 40, modes={1000: 1, 53: 1 << 60, -1: -1})),
        client.run(None, b""),
    ):
        try:
            await spawn
        except SpawnError:
            continue
    assert (await cat.result(b"still here")).stdout == b"still here"


async def test_a_reused_id_does_not_replace_a_process(client: BoxClient) -> None:
    cat = await client.start("cat")
    client.container._packets.send(encode(Spawn(id=cat.process.id, command=b"echo intruder")))
    assert (await client.run("echo fine")).stdout == b"fine\n"
    assert (await cat.result(b"still here")).stdout == b"still here"
