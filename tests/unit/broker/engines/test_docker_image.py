"""Bringing an image to a daemon, which here is one that says what a test wants it to say."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import pytest_asyncio
from aiodocker import Docker
from aiohttp import web

from hermes.broker.engines.docker_container import connect
from hermes.broker.engines.docker_image import ready_image
from hermes.broker.image import Definition, Image
from hermes.errors import EngineError


class Daemon:
    """Speaks as much of the API as images need. `answer` is what an import or a pull says, line by line."""

    def __init__(self) -> None:
        self.images: set[str] = set()
        self.answer: list[dict[str, str]] = [{"status": "sha256:0"}]
        self.keeps = True
        self.received = b""
        self.asked: list[str] = []

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_get("/version", self._version)
        app.router.add_get(r"/v1.41/images/{name:.+}/json", self._inspect)
        app.router.add_post("/v1.41/images/create", self._create)
        return app

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41"})

    async def _inspect(self, request: web.Request) -> web.Response:
        if request.match_info["name"] in self.images:
            return web.json_response({"Id": "sha256:0"})
        return web.json_response({"message": "No such image"}, status=404)

    async def _create(self, request: web.Request) -> web.Response:
        query = request.query
        name = f"{query.get('repo') or query.get('fromImage')}:{query['tag']}" if "tag" in query else query["fromImage"]
        self.asked.append(name)
        self.received = await request.read()
        if self.keeps:
            self.images.add(name)
        lines = "\n".join(json.dumps(line) for line in self.answer)
        return web.Response(text=lines, content_type="application/json")


@pytest.fixture
def daemon() -> Daemon:
    return Daemon()


@pytest_asyncio.fixture
async def docker(daemon: Daemon, tmp_path: Path) -> AsyncIterator[Docker]:
    runner = web.AppRunner(daemon.app())
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "docker.sock")).start()
    client = connect(f"unix://{tmp_path}/docker.sock")
    yield client
    await client.close()
    await client.connector.close()
    await runner.cleanup()


@pytest.fixture
def built(tmp_path: Path) -> Image:
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/issue").write_text("Debian\n" * 100_000)
    definition = cast(Definition, SimpleNamespace())
    return Image(
        name="small", digest="0123456789abcdef", rootfs=rootfs, init=("/sbin/init",), definition=definition, hostname="srv01"
    )


@pytest.mark.asyncio
async def test_our_image_is_imported_once(docker: Docker, daemon: Daemon, built: Image) -> None:
    assert await ready_image(docker, built) == "hermes/small:0123456789ab-srv01"
    assert b"Debian\n" * 100_000 in daemon.received
    assert await ready_image(docker, built) == "hermes/small:0123456789ab-srv01"
    assert daemon.asked == ["hermes/small:0123456789ab-srv01"]


@pytest.mark.asyncio
async def test_a_failed_import_is_told(docker: Docker, daemon: Daemon, built: Image) -> None:
    daemon.answer = [{"status": "so far"}, {"error": "no space left on device"}]
    with pytest.raises(EngineError, match=r"hermes/small.*no space left on device"):
        await ready_image(docker, built)


@pytest.mark.asyncio
async def test_an_import_that_left_nothing_is_told(docker: Docker, daemon: Daemon, built: Image) -> None:
    daemon.keeps = False
    with pytest.raises(EngineError, match="does not have it"):
        await ready_image(docker, built)


@pytest.mark.asyncio
async def test_an_image_the_daemon_has_is_not_pulled(docker: Docker, daemon: Daemon) -> None:
    daemon.images.add("alpine:3.20")
    assert await ready_image(docker, "alpine:3.20") == "alpine:3.20"
    assert daemon.asked == []


@pytest.mark.asyncio
async def test_a_missing_image_is_pulled(docker: Docker, daemon: Daemon) -> None:
    assert await ready_image(docker, "alpine:3.20") == "alpine:3.20"
    assert daemon.asked == ["alpine:3.20"]


@pytest.mark.asyncio
async def test_a_failed_pull_says_what_to_do(docker: Docker, daemon: Daemon) -> None:
    daemon.answer = [{"error": "toomanyrequests"}]
    daemon.keeps = False
    with pytest.raises(EngineError, match="by hand") as told:
        await ready_image(docker, "alpine:3.20")
    assert "alpine:3.20" in str(told.value)
