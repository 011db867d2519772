"""A stand-in for a runtime's exec: a script that runs on this machine what it is told to run in a box."""

import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from hermes.broker.engines import exec_server, oci_exec
from hermes.broker.engines.oci_exec import OciExecServer
from hermes.broker.oci import Runtime
from hermes.broker.policy import Policy
from hermes.config.models import LimitsConfig, SecurityConfig
from hermes.errors import EngineError, SpawnError
from hermes.testing.boxes import BoxClient

POLICY = Policy(SecurityConfig(), LimitsConfig())

RUNSC = """\
#!{python}
import json, os, sys
process = json.load(open(sys.argv[sys.argv.index("--process") + 1]))
(log,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--debug-log=")]
log = os.open(log, os.O_WRONLY | os.O_APPEND)
child = os.fork()
if child == 0:
    os.chdir(process["cwd"])
    os.execve(process["args"][0], process["args"], dict(entry.split("=", 1) for entry in process["env"]))
status = os.waitpid(child, 0)[1]
{end}
"""
TELLS = (
    'os.write(log, b"I1124 main.go:222] Exiting with status: %d\\n" % status); os._exit(abs(os.waitstatus_to_exitcode(status)))'
)


def runtime(directory: Path, end: str = TELLS) -> Runtime:
    program = directory / "runsc"
    program.write_text(RUNSC.format(python=sys.executable, end=end))
    program.chmod(0o755)
    return Runtime(str(program), directory / "state")


def served(runtime: Runtime) -> tuple[OciExecServer, BoxClient]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs.setblocking(False)
    return OciExecServer(runtime, "box", POLICY, ours), BoxClient(theirs)


@pytest_asyncio.fixture
async def client(tmp_path: Path) -> AsyncIterator[BoxClient]:
    server, client = served(runtime(tmp_path))
    yield client
    client.close()
    await server.close()


@pytest.mark.asyncio
async def test_streams_and_status(client: BoxClient) -> None:
    result = await client.run(None, b"/bin/sh", b"-c", b"cat; echo error >&2; exit 137", stdin=b"in\xff")
    assert (result.stdout, result.stderr, result.status) == (b"in\xff", b"error\n", 137)


@pytest.mark.asyncio
async def test_an_end_by_a_signal_is_told_apart_from_such_a_status(client: BoxClient) -> None:
    assert (await client.run(None, b"/bin/sh", b"-c", b"kill -KILL $$")).exit.signal == "KILL"


@pytest.mark.asyncio
async def test_what_cannot_run_fails(client: BoxClient) -> None:
    with pytest.raises(SpawnError, match="No such file or directory"):
        await client.run(None, b"/no/such/program")
    with pytest.raises(SpawnError, match="no such user"):
        await client.run("true", user="no such user")


@pytest.mark.asyncio
async def test_a_runtime_that_does_not_tell_is_believed_by_its_status(tmp_path: Path) -> None:
    server, client = served(runtime(tmp_path, "os._exit(137)"))
    assert (await client.run("true")).status == 137
    client.close()
    await server.close()


@pytest.mark.asyncio
async def test_the_end_of_the_box_ends_its_processes_and_its_socket(tmp_path: Path) -> None:
    server, client = served(runtime(tmp_path, "os._exit(128)"))
    cat = await client.start("cat")
    server._gone.set()
    assert (await cat.result()).exit.signal == "KILL"
    await server.box_ended()
    await client.container.lost.wait()
    client.close()


@pytest.mark.asyncio
async def test_a_box_whose_programs_do_not_run_is_not_opened(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="programs do not run in a box"):
        await OciExecServer.enter(runtime(tmp_path, "os._exit(1)"), "box", POLICY)
    with pytest.raises(EngineError, match="exec does not work"):
        await OciExecServer.enter(Runtime(str(tmp_path / "none" / "runsc"), tmp_path), "box", POLICY)
    server, sock = await OciExecServer.enter(runtime(tmp_path), "box", POLICY)
    sock.close()
    await server.close()


@pytest.mark.asyncio
async def test_an_endless_greeting_is_not_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_exec, "START_TIMEOUT", 0.5)
    monkeypatch.setattr(exec_server, "START_TIMEOUT", 0.5)
    endless = "os.execv('/bin/sh', ['sh', '-c', 'yes | head -c 9000000'])"
    program = runtime(tmp_path)
    text = Path(program.program).read_text().replace("child = os.fork()", endless)
    Path(program.program).write_text(text)
    server, client = served(program)
    with pytest.raises(SpawnError):
        await client.run("true")
    client.close()
    await server.close()
