"""Rows in a real PostgreSQL, which is also stopped, killed and made to wait."""

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from hermes.config.outputs import PostgresOutput
from hermes.errors import ConfigError
from hermes.outputs import delivery
from hermes.outputs.postgres import PostgresSink
from hermes.outputs.sink import SinkError
from hermes.store import cursors
from hermes.store.cursors import Cursor
from tests.sensors import free_port
from tests.unit.outputs.world import World, record
from tests.unit.store.facts import eventually

pytestmark = pytest.mark.root


class Server:
    """A PostgreSQL of the tests' own."""

    def __init__(self, place: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
        if not found:
            pytest.fail("there is no PostgreSQL here: run scripts/setup --dev")
        self.bin = found[-1].parent
        self.data = place / "data"
        self.port = free_port()
        self.run("initdb", "-D", self.data, "-A", "trust", "-E", "UTF8", "-U", "postgres", "--no-sync")

    def run(self, program: str, *arguments: str | Path) -> None:
        subprocess.run(
            [self.bin / program, *arguments], user="postgres", group="postgres", extra_groups=[], check=True, timeout=60,
            cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.data.parent} -F"
        self.run("pg_ctl", "-D", self.data, "-l", self.data.parent / "log", "-w", "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    @property
    def url(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url, autocommit=True) as db:
            return db.execute(query).fetchall()

    def do(self, *statements: str) -> None:
        with psycopg.connect(self.url, autocommit=True) as db:
            for it in statements:
                db.execute(it)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    place = Path(tempfile.mkdtemp(prefix="hermes-postgresql-", dir="/var/tmp"))
    account = pwd.getpwnam("postgres")
    os.chown(place, account.pw_uid, account.pw_gid)
    found = Server(place)
    found.start()
    yield found
    with contextlib.suppress(subprocess.CalledProcessError):
        found.stop()
    shutil.rmtree(place)


@pytest.fixture(autouse=True)
def empty(server: Server) -> None:
    server.do("DROP SCHEMA public CASCADE", "CREATE SCHEMA public", "DROP SCHEMA IF EXISTS honey CASCADE")


@contextlib.asynccontextmanager
async def opened(server: Server, **more: Any) -> AsyncIterator[PostgresSink]:
    config = PostgresOutput(**{"type": "postgresql", "name": "db", "url": server.url, "timeout": 10, **more})
    sink = PostgresSink(config, url=config.url, password="")
    try:
        yield sink
    finally:
        await sink.close()
        await eventually(lambda: sink._connection is None)


@pytest.mark.asyncio
async def test_a_row_an_event_and_one_that_comes_twice_is_there_once(server: Server) -> None:
    async with opened(server) as sink:
        await sink.send([record(1, "auth.attempt", username="root"), record(2)])
        await sink.send([record(2), record(3)])
    rows = server.ask(
        "SELECT event_id, id, sensor, event, connection_id, session_id, body->>'username' FROM hermes_events ORDER BY id"
    )
    assert rows == [
        ("j:1", 1, "s1", "auth.attempt", "c", None, "root"),
        ("j:2", 2, "s1", "connection.version", "c", None, None),
        ("j:3", 3, "s1", "connection.version", "c", None, None),
    ]
    ((moment,),) = server.ask("SELECT time FROM hermes_events WHERE id = 1")
    assert moment == record(1).time


@pytest.mark.asyncio
async def test_whatever_an_attacker_sends_can_be_stored(server: Server) -> None:
    nasty = ["\0", "a\0b", "\\u0000", "'; DROP TABLE hermes_events; --", "\U0001f980\u202e", "%s %(x)s :x", '"\\', "\x1b"]
    async with opened(server) as sink:
        await sink.send([record(it, text=text, listed=[text], connection_id=text) for it, text in enumerate(nasty)])
    found = [it for (it,) in server.ask("SELECT body->>'text' FROM hermes_events ORDER BY id")]
    assert found == [it.replace("\0", "\\x00") for it in nasty]


@pytest.mark.asyncio
async def test_a_table_elsewhere_and_one_that_may_only_be_added_to(server: Server) -> None:
    async with opened(server, table="honey.pot") as sink:
        await sink.send([record(1)])
    server.do("DROP ROLE IF EXISTS adder", "CREATE ROLE adder LOGIN", "GRANT USAGE ON SCHEMA honey TO adder")
    server.do("GRANT INSERT ON honey.pot TO adder")
    url = server.url.replace("postgres@", "adder@")
    async with opened(server, table="honey.pot", url=url) as sink:
        with contextlib.suppress(SinkError):
            await sink.send([record(1), record(2)])
    server.do("GRANT SELECT (event_id) ON honey.pot TO adder")
    async with opened(server, table="honey.pot", url=url) as sink:
        await sink.send([record(1), record(2)])
    assert server.ask("SELECT count(*) FROM honey.pot") == [(2,)]
    server.do("DROP OWNED BY adder", "DROP ROLE adder")


@pytest.mark.asyncio
async def test_errors_tell_no_secret(server: Server) -> None:
    async with opened(server, url=f"postgresql://nobody:geheim@127.0.0.1:{server.port}/nowhere") as sink:
        with pytest.raises(SinkError, match="does not exist") as failure:
            await sink.send([record(1, text="attacker")])
    async with opened(server, url="postgresql://postgres:geheim@127.0.0.1:1/postgres") as sink:
        with pytest.raises(SinkError, match=r"cannot be written: .*refused") as refused:
            await sink.send([record(1)])
    for it in (failure, refused):
        assert "geheim" not in str(it.value)
        assert "attacker" not in str(it.value)
        assert "\n" not in str(it.value)
    server.do("CREATE TABLE hermes_events (event_id text PRIMARY KEY)")
    async with opened(server) as sink:
        with pytest.raises(SinkError, match=r"column .* does not exist") as wrong:
            await sink.send([record(1, text="attacker")])
    assert "attacker" not in str(wrong.value)


def test_a_url_that_is_none_is_a_mistake_of_the_operator_s() -> None:
    config = PostgresOutput(type="postgresql", name="db", url="file:/x")
    with pytest.raises(ConfigError, match="url of db is no URL"):
        PostgresSink(config, url="geheim", password="")


@pytest.mark.asyncio
async def test_one_that_is_stopped_is_given_up_and_all_is_well_when_it_goes_on(server: Server) -> None:
    """A server that answers nothing, as on a machine that hangs: its kernel still takes what is sent."""
    async with opened(server, timeout=0.5) as sink:
        await sink.send([record(1)])
        ((backend,),) = server.ask("SELECT pid FROM pg_stat_activity WHERE application_name = 'hermes'")
        os.kill(backend, signal.SIGSTOP)
        try:
            with pytest.raises(SinkError, match="took nothing for 1 s"):
                await sink.send([record(2)])
            await sink.send([record(2)])
        finally:
            os.kill(backend, signal.SIGCONT)
    assert server.ask("SELECT count(*) FROM hermes_events") == [(2,)]


@pytest.mark.asyncio
async def test_nothing_is_lost_and_nothing_double_while_the_server_is_killed(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_SECONDS", (0.01, 0.1))
    world = World(tmp_path)
    world.count(0, 1000)
    config = PostgresOutput(type="postgresql", name="db", url=server.url, start="beginning", timeout=10)
    sink = PostgresSink(config, url=config.url, password="")
    sink.limit = 20
    async with world.running(config, sink):
        for upto in (1500, 2000):
            await eventually(lambda: (cursors.load(world.cursors, "db") or Cursor()).delivered > 20)
            await asyncio.to_thread(server.stop)
            world.count(upto - 500, upto)
            await asyncio.to_thread(server.start)
        await eventually(lambda: (cursors.load(world.cursors, "db") or Cursor()).id == 2000)
    await eventually(lambda: sink._connection is None)
    rows = server.ask("SELECT id, body->>'version' FROM hermes_events ORDER BY id")
    assert rows == [(it + 1, str(it)) for it in range(2000)]
