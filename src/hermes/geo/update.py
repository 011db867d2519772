"""Bring geographic databases from an npm registry: the newest version is asked for, fetched, checked against its integrity, and
put in place of the one before, with its licence. What is not whole, or is no such database, replaces nothing.

Everything that comes over the network is bounded and checked; nothing of it is run. All of it blocks.
"""

import base64
import binascii
import contextlib
import encodings.idna  # noqa: F401  imported lazily by the standard library, when it may be out of our reach
import gzip
import hashlib
import os
import re
import shutil
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO
from urllib.parse import quote

import httpx
import msgspec

import hermes
from hermes.config.geo import GeoConfig
from hermes.errors import GeoError
from hermes.geo.databases import MAX_DATABASE, Database, Kind

MAX_MANIFEST = 1024**2
MAX_TARBALL = 512 * 1024**2
MAX_UNPACKED = 2 * 1024**3
MAX_TEXT = 256 * 1024
"""Bytes of a manifest, of a package, of all that is in it, and of a text in it (licences, README)."""
MAX_FILES = 1000
TIMEOUT = 60.0
"""Seconds that the registry may be silent."""

_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,64}")
_TEXT = re.compile(r"package/[A-Za-z0-9_.-]*(?:LICEN[CS]E|EULA|NOTICE|README)[A-Za-z0-9_.-]*", re.IGNORECASE)
_DATABASE = re.compile(r"package/[A-Za-z0-9_.-]+(?<!-ipv4)(?<!-ipv6)\.mmdb")
_LEFT_OVER = ".new-"
_OLD = 3600.0


class Installed(msgspec.Struct, kw_only=True):
    """What is known of a database that was brought: it stands beside it."""

    package: str
    version: str
    licence: str
    homepage: str
    integrity: str
    fetched: str
    """When, UTC, ISO 8601."""
    built: str = ""
    """The day its data is of."""


class _Dist(msgspec.Struct):
    tarball: str
    integrity: str


class _Manifest(msgspec.Struct):
    version: str
    dist: _Dist
    license: str = "unknown"
    homepage: str = ""


def client(config: GeoConfig) -> httpx.Client:
    """A client that talks with the registry: never without TLS, unless the registry itself is without."""

    def check(request: httpx.Request) -> None:
        if config.registry.startswith("https://") and request.url.scheme != "https":
            raise GeoError(f"{request.url} is not https")

    return httpx.Client(
        timeout=TIMEOUT, follow_redirects=True, max_redirects=5, event_hooks={"request": [check]},
        headers={"User-Agent": f"hermes/{hermes.__version__}"},
    )  # fmt: skip


def installed(directory: Path, kind: Kind) -> Installed | None:
    """What is known of the database in the directory, None if there is none that was brought."""
    try:
        return msgspec.json.decode((directory / f"{kind}.json").read_bytes(), type=Installed)
    except (OSError, msgspec.MsgspecError):
        return None


def update(config: GeoConfig, directory: Path, kind: Kind, http: httpx.Client, *, force: bool = False) -> tuple[Installed, bool]:
    """Bring the newest database of this kind. Return what there is now, and whether that is new. Raises GeoError."""
    name = config.country_package if kind == "country" else config.asn_package
    with _translated(name):
        manifest = _newest(http, config.registry, name)
        before = installed(directory, kind)
        current = before is not None and (before.package, before.version) == (name, manifest.version)
        if before is not None and current and (directory / f"{kind}.mmdb").exists() and not force:
            return before, False
        _sweep(directory)
        with tempfile.TemporaryDirectory(dir=directory, prefix=_LEFT_OVER) as work:
            made = Installed(
                package=name,
                version=manifest.version,
                licence=manifest.license[:200],
                homepage=manifest.homepage[:500] or f"https://www.npmjs.com/package/{name}",
                integrity=manifest.dist.integrity,
                fetched=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            made = _make(http, manifest, made, Path(work), kind)
            for suffix in ("txt", "json", "mmdb"):
                os.replace(Path(work, f"{kind}.{suffix}"), directory / f"{kind}.{suffix}")  # noqa: PTH105
        return made, True


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        reason = "the registry has no such package" if status == 404 else f"the registry answers {status}"
        raise GeoError(f"{name}: {reason} ({error.request.url.host})") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise GeoError(f"{name}: the registry cannot be reached: {error}") from error
    except OSError as error:
        raise GeoError(f"{name}: {error.filename or ''}: {error.strerror or error}") from error


def _newest(http: httpx.Client, registry: str, name: str) -> _Manifest:
    with http.stream("GET", f"{registry}/{quote(name, safe='@')}/latest") as response:
        response.raise_for_status()
        data = b"".join(_bounded(response, MAX_MANIFEST, f"{name}: its description"))
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except msgspec.MsgspecError as error:
        raise GeoError(f"{name}: the registry's answer makes no sense: {error}") from error
    if not _VERSION.fullmatch(manifest.version):
        raise GeoError(f"{name}: the registry's answer makes no sense: the version")
    return manifest


def _make(http: httpx.Client, manifest: _Manifest, made: Installed, work: Path, kind: Kind) -> Installed:
    """Have database, licence and description in `work`, checked and on disk. Return the description."""
    expected = _sha512(made)
    tarball, unpacked = work / "package.tgz", work / "package.tar"
    digest = hashlib.sha512()
    with http.stream("GET", manifest.dist.tarball) as response, tarball.open("wb") as file:
        response.raise_for_status()
        for piece in _bounded(response, MAX_TARBALL, made.package):
            digest.update(piece)
            file.write(piece)
    if digest.digest() != expected:
        raise GeoError(f"{made.package}: what came is not what the registry says it is (sha512)")
    try:
        with gzip.open(tarball) as packed, unpacked.open("wb") as plain:
            _copy(packed, plain, MAX_UNPACKED, made.package)
        with tarfile.open(unpacked, "r:") as archive:
            _extract(archive, made, work, kind)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise GeoError(f"{made.package}: the package is damaged: {error}") from error
    database = Database(work / f"{kind}.mmdb")
    database.require(kind)
    made = msgspec.structs.replace(made, built=f"{datetime.fromtimestamp(database.facts.built, UTC):%Y-%m-%d}")
    (work / f"{kind}.json").write_bytes(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
    for suffix in ("txt", "json", "mmdb"):
        with Path(work, f"{kind}.{suffix}").open("rb") as file:
            os.fsync(file.fileno())
    return made


def _sha512(made: Installed) -> bytes:
    """The digest that the registry states (Subresource Integrity)."""
    for one in made.integrity.split():
        algorithm, _, encoded = one.partition("-")
        if algorithm == "sha512":
            with contextlib.suppress(binascii.Error, ValueError):
                if len(digest := base64.b64decode(encoded.partition("?")[0], validate=True)) == 64:
                    return digest
    raise GeoError(f"{made.package}: the registry states no sha512")


def _extract(archive: tarfile.TarFile, made: Installed, work: Path, kind: Kind) -> None:
    texts = [f"{made.package} {made.version}, licence {made.licence}\n{made.homepage}\n"]
    found = ""
    for number, member in enumerate(archive):
        if number >= MAX_FILES:
            raise GeoError(f"{made.package}: there are too many files in it")
        if not member.isreg() or (content := archive.extractfile(member)) is None:
            continue
        if _TEXT.fullmatch(member.name):
            texts.append(f"---- {member.name.removeprefix('package/')}\n\n{content.read(MAX_TEXT).decode(errors='replace')}")
        elif _DATABASE.fullmatch(member.name):
            if found:
                raise GeoError(f"{made.package}: there is more than one database in it ({found}, {member.name})")
            found = member.name
            with (work / f"{kind}.mmdb").open("wb") as file:
                _copy(content, file, MAX_DATABASE, made.package)
    if not found:
        raise GeoError(f"{made.package}: there is no database of both IPv4 and IPv6 in it")
    (work / f"{kind}.txt").write_text("\n".join(texts))


def _bounded(response: httpx.Response, most: int, what: str) -> Iterator[bytes]:
    size = 0
    for piece in response.iter_bytes(65536):
        size += len(piece)
        if size > most:
            raise GeoError(f"{what} is larger than {most} bytes")
        yield piece


def _copy(source: gzip.GzipFile | IO[bytes], target: BinaryIO, most: int, what: str) -> None:
    size = 0
    while piece := source.read(1024**2):
        size += len(piece)
        if size > most:
            raise GeoError(f"{what}: what is in it is larger than {most} bytes")
        target.write(piece)


def _sweep(directory: Path) -> None:
    """Remove what was left by an update that was killed."""
    for place in directory.glob(_LEFT_OVER + "*"):
        with contextlib.suppress(OSError):
            if place.lstat().st_mtime < time.time() - _OLD:
                shutil.rmtree(place)
