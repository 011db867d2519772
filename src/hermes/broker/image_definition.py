"""A target image as data: one folder with an `image.yaml`, the files to lay over it, and an optional `setup` program."""

import hashlib
import json
import platform
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

import hermes
from hermes.errors import ImageError

BUILDER = 1
"""Raise it when the builder makes something else of the same definition, so that images are built anew."""

_SYSTEM_FOLDER = Path("/etc/hermes/images")
_PACKAGE = Path(hermes.__file__).parent
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00\n:]*$")]
Mirror = Annotated[str, Field(pattern=r"^(https?|file|copy)://[^\s\[\]]+$")]
Mode = Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class User(_Part):
    """An account of the image. One that a package made already (`root`, `www-data`) is changed, any other is added."""

    name: str = Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")
    uid: int | None = Field(default=None, ge=0, le=65533)
    comment: str = Field(default="", pattern=r"^[^:\n,]*$")
    shell: AbsolutePath = "/bin/bash"
    home: AbsolutePath | None = None
    """`/home/NAME` by default. Made from `/etc/skel`."""
    groups: tuple[Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")], ...] = ()
    """Groups besides the user's own; those that do not exist are made."""
    password: str = Field(default="*", pattern=r"^[^:\s]*$")
    """As in `/etc/shadow`: a hash (`openssl passwd -6`), or `*` for none."""


class Permissions(_Part):
    """What a file of the tree differs in from the rule (root's, 0644 or 0755; under a user's home, that user's)."""

    owner: str | None = None
    group: str | None = None
    mode: Mode | None = None


class ImageConfig(_Part):
    """All that can stand in an `image.yaml`."""

    description: str = Field(default="", max_length=200)
    suite: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    """Debian release, such as `bookworm`."""
    components: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")], ...] = Field(default=("main",), min_length=1)
    mirror: Mirror = "http://deb.debian.org/debian"
    """Where packages come from, unless this machine is the same release: then from where its own packages come."""
    security_mirror: Mirror | None = "http://deb.debian.org/debian-security"
    """The same for `SUITE-security`; null for a suite that has none."""
    packages: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")], ...] = ()
    """Packages besides the required ones. Recommended packages are not added."""
    exclude: tuple[AbsolutePath, ...] = ()
    """Paths (with `*`) that are not unpacked from packages."""
    init: tuple[str, ...] = Field(default=("/sbin/init",), min_length=1)
    """Command line of the container's process 1. It must reap orphans."""
    locale: str = Field(default="C.UTF-8", pattern=r"^[A-Za-z0-9_.@-]+$")
    timezone: str = Field(default="Etc/UTC", pattern=r"^[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+)*$")
    age_days: int = Field(default=0, ge=0, le=3650)
    """How many days ago the system seems to have been installed: the build's own times are moved back by this."""
    users: tuple[User, ...] = ()
    permissions: dict[AbsolutePath, Permissions] = {}
    """By absolute path: what files of the tree differ in from the rule."""

    @field_validator("init")
    @classmethod
    def _init_is_a_path(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value[0].startswith("/"):
            raise ValueError("must begin with an absolute path")
        return value


@dataclass(frozen=True, slots=True)
class Definition:
    """An image's folder, read: what it is made of and the digest of all that."""

    name: str
    folder: Path
    config: ImageConfig
    digest: str
    """SHA-256 over the settings, every file's path, mode and content, the builder's version and the machine's architecture."""

    @property
    def files(self) -> Path:
        """The tree laid over the packages' files; it need not exist."""
        return self.folder / "files"

    @property
    def setup(self) -> Path:
        """Program run at the end inside the image, as root and without a network; it need not exist."""
        return self.folder / "setup"


def folders() -> list[Path]:
    """Folders searched for images, first match first: the operator's own, then those that come with Hermes."""
    return [_SYSTEM_FOLDER, _PACKAGE / "images", _PACKAGE.parents[1] / "images"]


def find(name: str, search: list[Path] | None = None) -> Definition:
    """Return the definition called `name`. Raise `ImageError` when there is none, or when it is wrong."""
    if _NAME.fullmatch(name):
        for folder in folders() if search is None else search:
            if (folder / name / "image.yaml").is_file():
                return _read(name, folder / name)
    raise ImageError(f"no target image is called {name!r}; known are: {', '.join(names(search)) or 'none'}")


def names(search: list[Path] | None = None) -> list[str]:
    """Return the names of all images that can be built, sorted."""
    found = {path.parent.name for folder in (folders() if search is None else search) for path in folder.glob("*/image.yaml")}
    return sorted(name for name in found if _NAME.fullmatch(name))


def _read(name: str, folder: Path) -> Definition:
    path = folder / "image.yaml"
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ImageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ImageError(f"{path} must be a mapping of settings, such as 'suite: bookworm'")
    try:
        config = ImageConfig.model_validate(raw)
    except ValidationError as error:
        raise ImageError(f"{path}: {_explain(error)}") from error
    return Definition(name=name, folder=folder, config=config, digest=_digest(config, folder))


def _explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}" for item in error.errors())


def _digest(config: ImageConfig, folder: Path) -> str:
    whole = hashlib.sha256()

    def add(*parts: Any) -> None:
        whole.update(json.dumps(parts, sort_keys=True).encode() + b"\n")

    add("hermes image", BUILDER, platform.machine(), config.model_dump(mode="json"))
    try:
        for path in sorted([folder / "setup", *(folder / "files").rglob("*")]):
            if path.is_symlink():
                add(str(path.relative_to(folder)), "link", str(path.readlink()))
            elif path.is_file():
                executable = bool(path.stat().st_mode & stat.S_IXUSR)
                add(str(path.relative_to(folder)), executable, hashlib.sha256(path.read_bytes()).hexdigest())
            elif path.is_dir():
                add(str(path.relative_to(folder)), "directory")
    except OSError as error:
        raise ImageError(f"{folder} cannot be read: {error}") from error
    return whole.hexdigest()
