"""The store of built target images: `<data_dir>/images/<name>-<digest>/`, a root file system and its manifest.

The files inside are root's and partly writable by anybody, as on any system; only root can reach them, because `images/`
lets nobody else in.
"""

import fcntl
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, ValidationError

from hermes.broker import image_definition
from hermes.broker.image_build import Progress, make_rootfs, packages
from hermes.broker.image_definition import Definition, find
from hermes.errors import ImageError

__all__ = [
    "Definition", "Image", "Manifest", "Stored", "build", "docker_tag", "ensure", "find", "get", "hold", "list_images",
    "open_archive", "set_hostname",
]  # fmt: skip

PLACEHOLDER = b"@HOSTNAME@"
"""Stands in the files of an image wherever the host name belongs."""

_NEEDED = 1024**3
_TEMPLATED = ("etc", "var", "root", "home", "srv", "opt")
_TEMPLATE_LIMIT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Image:
    """A built image, ready to be the lower layer of a box."""

    name: str
    digest: str
    rootfs: Path
    init: tuple[str, ...]
    definition: Definition
    hostname: str = ""
    """The name in its files; empty before `set_hostname`."""


class Manifest(BaseModel):
    """What `manifest.json` holds; it is written last, so an image without one is not an image."""

    model_config = ConfigDict(frozen=True)

    name: str
    digest: str
    suite: str
    built: datetime
    size: int
    """Bytes on disk."""
    packages: dict[str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """One line of `list_images`: what can be built, and what is."""

    name: str
    description: str
    digest: str
    manifest: Manifest | None
    """None: not built."""
    current: bool
    """Built from the definition as it is now."""


def build(definition: Definition, data_dir: Path, progress: Progress, *, force: bool = False) -> Image:
    """Build the image unless it is there already, and return it. Blocks for about a minute.

    One build at a time: a second one waits for the first and then finds its work done. An exception (also one that
    `progress` raises) ends the build and leaves nothing but its log, `<name>.log`.
    """
    home = _home(data_dir)
    target = _folder(definition, data_dir)
    with _building(home, progress):
        if not force and _is_whole(target, definition):
            return get(definition.name, data_dir, definition=definition)
        if target.exists() and not _is_free(target):
            raise ImageError(f"image {definition.name} is in use by a running Hermes; stop it before building the image again")
        free = shutil.disk_usage(home).free
        if free < _NEEDED:
            raise ImageError(
                f"image {definition.name}: only {free // 1024**2} MB are free under {home}, {_NEEDED // 1024**2} are needed"
            )
        scratch = Path(tempfile.mkdtemp(prefix=".build-", dir=home))
        try:
            rootfs = scratch / "rootfs"
            log = home / f"{definition.name}.log"
            make_rootfs(definition, rootfs, log, progress)
            _keep_templates(rootfs, scratch / "templates")
            (scratch / "sources.list").unlink(missing_ok=True)
            manifest = Manifest(
                name=definition.name,
                digest=definition.digest,
                suite=definition.config.suite,
                built=datetime.now(UTC),
                size=_size(rootfs),
                packages=packages(rootfs),
            )
            progress("writing to disk")
            os.sync()
            (scratch / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
            if target.exists():
                target.rename(scratch / "replaced")
            scratch.rename(target)
            shutil.rmtree(target / "replaced", ignore_errors=True)
            log.unlink(missing_ok=True)
        except OSError as error:
            raise ImageError(f"image {definition.name} cannot be written under {home}: {error.strerror or error}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    progress(f"built {definition.name}: {manifest.size // 1024**2} MB, {len(manifest.packages)} packages")
    return get(definition.name, data_dir, definition=definition)


def get(name: str, data_dir: Path, *, definition: Definition | None = None) -> Image:
    """Return a built image. Raise `ImageError` when it is unknown, not built, damaged, or built from an older definition."""
    definition = definition or find(name)
    target = _folder(definition, data_dir)
    if not _is_whole(target, definition):
        older = [folder for folder in _versions(name, data_dir) if folder != target]
        why = "was built from an older definition" if older else "is damaged" if target.exists() else "is not built"
        raise ImageError(f"image {name} {why}; run `hermes image build {name}`")
    marker = target / "hostname"
    return Image(
        name=name,
        digest=definition.digest,
        rootfs=target / "rootfs",
        init=definition.config.init,
        definition=definition,
        hostname=marker.read_text(encoding="utf-8") if marker.exists() else "",
    )


def ensure(name: str, data_dir: Path, progress: Progress) -> Image:
    """Return the image, building it when it is missing or out of date. Versions of it that nothing uses are removed."""
    definition = find(name)
    image = build(definition, data_dir, progress)
    for folder in _versions(name, data_dir):
        if folder != image.rootfs.parent and _is_free(folder):
            (folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    return image


def list_images(data_dir: Path) -> list[Stored]:
    """Return every image that can be built, and every build of one that is not (or no longer) the current one."""
    stored = []
    for name in image_definition.names():
        try:
            definition = find(name)
        except ImageError as error:
            stored.append(Stored(name, str(error), "", None, current=False))
            continue
        current = _folder(definition, data_dir)
        stored.append(Stored(name, definition.config.description, definition.digest, _manifest(current), current=True))
    known = {(entry.name, entry.digest) for entry in stored}
    for path in sorted(data_dir.glob("images/[a-z0-9]*/manifest.json")):
        manifest = _manifest(path.parent)
        if manifest is not None and (manifest.name, manifest.digest) not in known:
            stored.append(Stored(manifest.name, "", manifest.digest, manifest, current=False))
    return stored


def set_hostname(image: Image, hostname: str) -> Image:
    """Write the host name into every file of the image that has a place for it. Call it before the first box starts."""
    if image.hostname == hostname:
        return image
    marker = image.rootfs.parent / "hostname"
    templates = image.rootfs.parent / "templates"
    try:
        marker.unlink(missing_ok=True)
        for source in sorted(path for path in templates.rglob("*") if path.is_file()):
            target = image.rootfs / source.relative_to(templates)
            fresh = target.with_name(f"{target.name}.new")
            parent = target.parent.stat()
            fresh.write_bytes(source.read_bytes().replace(PLACEHOLDER, hostname.encode()))
            _copy_status(source, fresh)
            fresh.replace(target)
            os.utime(target.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))
        marker.write_text(hostname, encoding="utf-8")
    except OSError as error:
        raise ImageError(f"image {image.name}: the host name cannot be written: {error}") from error
    return replace(image, hostname=hostname)


def hold(image: Image) -> IO[bytes]:
    """Keep the image from being removed or replaced while the returned file is open. Boxes stand on its files."""
    held = (image.rootfs.parent / "manifest.json").open("rb")
    try:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise ImageError(f"image {image.name} is being replaced just now") from error
    return held


def docker_tag(image: Image) -> str:
    """What a Docker daemon knows this very build by."""
    return f"hermes/{image.name}:{image.digest[:12]}{f'-{image.hostname}' if image.hostname else ''}"


@contextmanager
def open_archive(image: Image) -> Iterator[IO[bytes]]:
    """Yield a readable stream of the image as a tar archive with numeric owners, as `docker import` takes it.

    Leaving the block before the end of the stream is fine; `ImageError` when the archive ended early by itself.
    """
    argv = ["tar", "--create", "--numeric-owner", "--xattrs", "--xattrs-include=security.capability"]
    argv += ["-C", str(image.rootfs), "--file=-", "."]
    try:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise ImageError(f"tar cannot be run: {error}") from error
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout
            if process.stdout.read(1) == b"" and process.wait():
                raise ImageError(f"image {image.name} could not be read whole: tar ended with status {process.returncode}")
        finally:
            process.kill()


# ---- folders, manifests, locks


def _home(data_dir: Path) -> Path:
    if os.geteuid() != 0:
        raise ImageError("only root can build images")
    home = data_dir / "images"
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if home.is_symlink() and not _only_roots(data_dir.stat()):
            raise ImageError(f"{home} is a link, and others than root can change {data_dir}: images would go where they say")
        fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_uid != 0:
                raise ImageError(f"{home} is not root's: images in it could be changed by others")
            os.fchmod(fd, 0o700)
        finally:
            os.close(fd)
    except OSError as error:
        raise ImageError(f"{home} cannot be made: {error.strerror}") from error
    return home


def _only_roots(status: os.stat_result) -> bool:
    return status.st_uid == 0 and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _folder(definition: Definition, data_dir: Path) -> Path:
    return data_dir / "images" / f"{definition.name}-{definition.digest[:12]}"


def _versions(name: str, data_dir: Path) -> list[Path]:
    folders = [path.parent for path in (data_dir / "images").glob(f"{name}-*/manifest.json")]
    return sorted(folder for folder in folders if folder.name.rpartition("-")[0] == name)


def _manifest(folder: Path) -> Manifest | None:
    try:
        return Manifest.model_validate_json((folder / "manifest.json").read_bytes())
    except (OSError, ValidationError):
        return None


def _is_whole(folder: Path, definition: Definition) -> bool:
    manifest = _manifest(folder)
    if manifest is None or manifest.digest != definition.digest:
        return False
    return os.path.lexists(folder / "rootfs" / definition.config.init[0].lstrip("/"))


def _is_free(folder: Path) -> bool:
    try:
        with (folder / "manifest.json").open("rb") as held:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _building(home: Path, progress: Progress) -> Iterator[None]:
    with (home / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            progress("another build is under way; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in home.glob(".build-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _keep_templates(rootfs: Path, templates: Path) -> None:
    templates.mkdir()
    for top in _TEMPLATED:
        for folder, _, files in os.walk(rootfs / top):
            for name in files:
                path = Path(folder, name)
                status = path.lstat()
                if path.is_symlink() or not path.is_file() or status.st_size > _TEMPLATE_LIMIT:
                    continue
                content = path.read_bytes()
                if PLACEHOLDER in content:
                    copy = templates / path.relative_to(rootfs)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(content)
                    _copy_status(path, copy)


def _copy_status(source: Path, target: Path) -> None:
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(status.st_mode & 0o7777)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _size(rootfs: Path) -> int:
    return sum(os.lstat(os.path.join(folder, name)).st_blocks for folder, _, files in os.walk(rootfs) for name in files) * 512  # noqa: PTH118
