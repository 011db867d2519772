"""Processes over Docker's exec API, beyond what holds for every engine."""

import asyncio
from typing import TYPE_CHECKING

import pytest

from hermes.broker.engines.exec_server import MAX_PROCESSES
from hermes.container import Terminal
from hermes.errors import SpawnError
from hermes.testing.boxes import BoxClient
from tests.engine.conftest import Make, new_id

if TYPE_CHECKING:
    from hermes.broker.image import Image

pytestmark = [pytest.mark.root, pytest.mark.timeout(120, func_only=True)]


@pytest.mark.asyncio
async def test_more_processes_at_once_than_http_clients_have_connections(make: Make, target_image: "Image") -> None:
    engine = make(target_image, entry="api", limits={"pids": 512})
    await engine.start()
    boxes = [await engine.create(new_id()) for _ in range(2)]
    clients = [BoxClient(await engine.open(box)) for box in boxes]
    cats = [await asyncio.gather(*(client.start("cat") for _ in range(MAX_PROCESSES))) for client in clients]
    with pytest.raises(SpawnError):
        await clients[0].start("cat")
    for number, cat in enumerate(cats[0] + cats[1]):
        assert (await cat.result(b"%d" % number)).stdout == b"%d" % number
    assert await clients[0].output("echo again") == "again"
    for client in clients:
        client.close()


@pytest.mark.asyncio
async def test_many_signals_and_sizes_cost_little(make: Make, target_image: "Image") -> None:
    engine = make(target_image, entry="api")
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        shell = await client.start(
            "trap : USR1; until test \"$(stty size)\" = '7 9'; do sleep 0.05; done; exit 3", terminal=Terminal()
        )
        for number in range(20_000):
            shell.process.signal("USR1")
            shell.process.resize(100 + number % 2, 50)
            if number % 500 == 0:
                await asyncio.sleep(0)
        shell.process.resize(9, 7)
        assert (await shell.wait()).status == 3
        shell.close()


@pytest.mark.asyncio
async def test_a_process_that_closes_its_output_is_not_ended(make: Make, target_image: "Image") -> None:
    engine = make(target_image, entry="api")
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        process = await client.start("exec >/dev/null 2>&1; sleep 1; echo done > /tmp/done; exit 9")
        assert (await process.result()).status == 9
        assert await client.output("cat /tmp/done") == "done"
        holder = await client.run("sleep 1000 & echo out; exit 8")
        assert (holder.status, holder.stdout) == (8, b"out\n")


@pytest.mark.asyncio
async def test_a_shell_that_went_away(make: Make, target_image: "Image") -> None:
    engine = make(target_image, entry="api")
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        cat = await client.start("cat")
        await client.run("rm -f /bin/sh /bin/dash /usr/bin/sh /usr/bin/dash")
        with pytest.raises(SpawnError):
            await client.run("echo x")
        with pytest.raises(SpawnError):
            await client.run("echo x", terminal=Terminal())
        assert (await cat.result(b"still here")).stdout == b"still here"


@pytest.mark.asyncio
async def test_a_passwd_that_never_answers(make: Make, target_image: "Image", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hermes.broker.engines.exec_server.START_TIMEOUT", 2.0)
    engine = make(target_image, entry="api")
    await engine.start()
    box = await engine.create(new_id())
    async with BoxClient(await engine.open(box)) as client:
        await client.run("rm /etc/passwd; mkfifo /etc/passwd")
        with pytest.raises(SpawnError):
            await client.run("echo x")
