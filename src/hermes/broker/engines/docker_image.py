"""The target image in the daemon: our own build is imported, any other name is used as it is and pulled if it is missing."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import IO

import structlog
from aiodocker import Docker, DockerError

from hermes.broker.engines.docker_stream import FAULTS
from hermes.broker.engines.exec_server import one_line
from hermes.broker.image import Image, docker_tag, open_archive
from hermes.errors import EngineError

log = structlog.get_logger(__name__)

IMPORT_TIMEOUT = 600.0
"""Seconds to bring an image to the daemon, or for the daemon to pull it."""
_BLOCK = 1 << 20


async def ready_image(docker: Docker, image: Image | str) -> str:
    """Make sure that the daemon has the image; return what it calls it. EngineError if that cannot be."""
    reference = image if isinstance(image, str) else docker_tag(image)
    try:
        async with asyncio.timeout(IMPORT_TIMEOUT):
            if await _has(docker, reference):
                return reference
            if isinstance(image, Image):
                log.info("importing the image into Docker", image=reference)
                await _import(docker, image, reference)
            else:
                log.info("pulling the image", image=reference)
                await docker.images.pull(reference)
            if not await _has(docker, reference):
                raise EngineError(f"docker: image {reference}: the daemon took it, and does not have it")
    except FAULTS as error:
        verb = "pulled; pull or build it by hand, or name another" if isinstance(image, str) else "imported"
        raise EngineError(f"docker: image {reference} cannot be {verb}: {one_line(error)}") from error
    return reference


async def _has(docker: Docker, reference: str) -> bool:
    try:
        await docker.images.inspect(reference)
    except DockerError as error:
        if error.status == 404:
            return False
        raise
    return True


async def _import(docker: Docker, image: Image, reference: str) -> None:
    name, _, tag = reference.rpartition(":")
    wanted = {"fromSrc": "-", "repo": name, "tag": tag}
    with open_archive(image) as archive:
        headers = {"Content-Type": "application/x-tar"}
        answer = docker._query("images/create", "POST", params=wanted, data=_blocks(archive), headers=headers, chunked=True)
        async with answer as response:
            # The status is 200 whatever happens; what happened is said line by line.
            async for line in response.content:
                if line.strip() and (problem := json.loads(line).get("error")):
                    raise DockerError(500, str(problem))


async def _blocks(archive: IO[bytes]) -> AsyncIterator[bytes]:
    loop = asyncio.get_running_loop()
    while block := await loop.run_in_executor(None, archive.read, _BLOCK):
        yield block
