"""Makes the root file system of a target image: Debian packages by mmdebstrap, then accounts, files and `setup`.

Everything that runs code of the image runs in namespaces of its own and dies with this process; `setup` has no network.
"""

import errno
import io
import os
import subprocess
import tarfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hermes.broker.image_definition import Definition, User
from hermes.errors import ImageError

Progress = Callable[[str], None]

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_TIMEOUT = 600.0
"""Seconds for one command inside the image. Fetching packages has no limit: apt has its own."""
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}
_TRACES = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "var/log/bootstrap.log",
    "var/cache/ldconfig/aux-cache",
    "var/cache/apt/pkgcache.bin",
    "var/cache/apt/srcpkgcache.bin",
    "etc/resolv.conf",
    "etc/hostname",
)
_EMPTIED = ("dev", "run", "tmp", "var/tmp")


def make_rootfs(definition: Definition, rootfs: Path, log: Path, progress: Progress) -> None:
    """Fill `rootfs` (which must not exist; its parent must) with what `definition` says.

    All output of the tools goes to `log`, each step to `progress`. Raise `ImageError`, with what the tool complained of, when a
    step fails; what is there by then is the caller's to remove.
    """
    started = time.time()
    config = definition.config
    _bootstrap(definition, rootfs, log, progress)
    try:
        _remove_traces(rootfs)
        progress("adding accounts")
        for user in config.users:
            _add_user(rootfs, user)
        progress("laying files")
        _unpack(rootfs, _generated(definition))
        if definition.files.is_dir():
            _unpack(rootfs, _tree(definition, _Accounts.read(rootfs)))
        if config.age_days:
            _age(rootfs, started - 1, config.age_days * 86400)
        if definition.setup.is_file():
            progress("running setup")
            inside(rootfs, ["/bin/sh", "-c", "cat >/tmp/.setup && chmod 700 /tmp/.setup"], definition.setup.read_bytes())
            inside(rootfs, ["env", f"AGE_DAYS={config.age_days}", "/tmp/.setup"])
        for folder in _EMPTIED:
            _empty(rootfs / folder)
    except OSError as error:
        raise ImageError(f"image {definition.name}: {_disk(error, rootfs)}") from error
    if not os.path.lexists(rootfs / config.init[0].lstrip("/")):
        raise ImageError(f"image {definition.name} has no {config.init[0]}, which its `init` names: a package is missing")


def packages(rootfs: Path) -> dict[str, str]:
    """Return the version of each installed package, by name."""
    lines = inside(rootfs, ["dpkg-query", "-W", "-f", "${Package} ${Version}\n"]).decode().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def inside(rootfs: Path, argv: list[str], stdin: bytes = b"") -> bytes:
    """Run a command in the image, as root, without network, in namespaces that end with it. Return its standard output."""
    command = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "--kill-child"]
    command += [f"--mount-proc={rootfs / 'proc'}", "chroot", str(rootfs), *argv]
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, env=_ENVIRONMENT, umask=0o022, timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{argv[0]} did not end within {_TIMEOUT:.0f} seconds inside the image") from error
    except OSError as error:
        raise ImageError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = " / ".join((done.stderr or done.stdout).decode(errors="replace").split("\n")[-6:]).strip(" /")
        raise ImageError(f"{argv[0]} failed inside the image with status {done.returncode}: {said}")
    return done.stdout


# ---- packages


def _bootstrap(definition: Definition, rootfs: Path, log: Path, progress: Progress) -> None:
    config = definition.config
    sources = rootfs.with_name("sources.list")
    sources.write_text("".join(f"{line}\n" for line in _sources(definition)), encoding="utf-8")
    argv = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    argv += ["mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--skip=cleanup/reproducible"]
    argv += [f"--aptopt={option}" for option in ('APT::Sandbox::User "root"', 'Acquire::Languages "none"', *_apt_options())]
    argv += ["--dpkgopt=force-unsafe-io", *(f"--dpkgopt=path-exclude={path}" for path in config.exclude)]
    if config.packages:
        argv.append(f"--include={','.join(config.packages)}")
    argv += [config.suite, str(rootfs), str(sources)]
    progress(f"fetching and unpacking {config.suite} and {len(config.packages)} packages")
    environment = {**os.environ, **_ENVIRONMENT}
    try:
        with (
            log.open("wb") as kept,
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, umask=0o022
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    kept.write(line)
                    kept.flush()
                    if line.startswith(b"I: "):
                        progress(line[3:].decode(errors="replace").strip())
            except BaseException:
                process.kill()
                process.stdout.read()
                raise
    except OSError as error:
        raise ImageError(f"image {definition.name}: {_disk(error, rootfs)}") from error
    if process.returncode:
        raise ImageError(_why(definition, log))


def _why(definition: Definition, log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace")
    if "No space left on device" in text or "not enough free space" in text.lower():
        return f"image {definition.name}: the disk is full; free about 1 GB under {log.parent}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line.removeprefix("E: ") for line in lines if line.startswith("E: ")] or lines[-3:]
    return f"image {definition.name}: mmdebstrap failed: {'; '.join(said[:3])} (all it said is in {log})"


def _disk(error: OSError, where: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full; free about 1 GB under {where.parent}"
    return str(error)


def _sources(definition: Definition) -> list[str]:
    """apt's lines for the build: this machine's own where it runs the same release, else the definition's mirrors."""
    return _host_sources(definition) or _mirror_lines(definition, f"[signed-by={_KEYRING}] " if _KEYRING.exists() else "")


def _mirror_lines(definition: Definition, options: str = "") -> list[str]:
    config = definition.config
    components = " ".join(config.components)
    lines = [f"deb {options}{config.mirror} {config.suite} {components}"]
    if config.security_mirror:
        lines.append(f"deb {options}{config.mirror} {config.suite}-updates {components}")
        lines.append(f"deb {options}{config.security_mirror} {config.suite}-security {components}")
    return lines


def _host_sources(definition: Definition) -> list[str]:
    config = definition.config
    release = _os_release()
    if release.get("ID") != "debian" or release.get("VERSION_CODENAME") != config.suite:
        return []
    wanted = {config.suite, f"{config.suite}-updates", f"{config.suite}-security"}
    found = []
    for line in _ask(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]):
        uri, _, rest = line.partition(" ")
        suite, _, component = rest.partition(" ")
        if suite in wanted and component in config.components:
            found.append(f"deb {uri} {suite} {component}")
    if not any(line.split()[2] == config.suite for line in found):
        return []
    return list(dict.fromkeys(found))


def _apt_options() -> list[str]:
    """The machine's own proxies and certificates, as apt options."""
    return [
        line
        for line in _ask(["apt-config", "dump", "--format", '%F "%v";%n', "Acquire::http", "Acquire::https"])
        if '""' not in line
    ]


def _ask(argv: list[str]) -> list[str]:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _os_release() -> dict[str, str]:
    with suppress(OSError):
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
        return {key: value.strip('"') for key, _, value in (line.partition("=") for line in lines)}
    return {}


# ---- accounts and files


@dataclass(frozen=True, slots=True)
class _Accounts:
    """Who is who in the image: ids by name, and whose home a folder is."""

    uids: dict[str, int]
    gids: dict[str, int]
    homes: dict[str, tuple[int, int]]

    @classmethod
    def read(cls, rootfs: Path) -> "_Accounts":
        users = [line.split(":") for line in (rootfs / "etc/passwd").read_text().splitlines()]
        groups = [line.split(":") for line in (rootfs / "etc/group").read_text().splitlines()]
        return cls(
            {user[0]: int(user[2]) for user in users},
            {group[0]: int(group[2]) for group in groups},
            {user[5]: (int(user[2]), int(user[3])) for user in users if int(user[2]) >= 1000 and user[5].startswith("/home/")},
        )

    def owner_of(self, path: str) -> tuple[int, int]:
        return next((ids for home, ids in self.homes.items() if path == home or path.startswith(home + "/")), (0, 0))


def _add_user(rootfs: Path, user: User) -> None:
    accounts = _Accounts.read(rootfs)
    for group in user.groups:
        if group not in accounts.gids:
            inside(rootfs, ["groupadd", group])
    options = ["-c", user.comment, "-s", user.shell, "-p", user.password]
    if user.uid is not None and accounts.uids.get(user.name) != user.uid:
        options += ["-u", str(user.uid)]
    if user.groups:
        options += ["-G", ",".join(user.groups)]
    if user.name in accounts.uids:
        if user.home is not None:
            options += ["-d", user.home]
        inside(rootfs, ["usermod", *options, user.name])
    else:
        inside(rootfs, ["useradd", "-m", "-K", "HOME_MODE=0700", "-d", user.home or f"/home/{user.name}", *options, user.name])


def _generated(definition: Definition) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    config = definition.config
    texts = {
        "etc/apt/sources.list": "\n".join(_mirror_lines(definition)),
        "etc/hostname": "@HOSTNAME@",
        "etc/hosts": "127.0.0.1\tlocalhost\n127.0.1.1\t@HOSTNAME@\n\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        "ff02::1\tip6-allnodes\nff02::2\tip6-allrouters",
        "etc/resolv.conf": "nameserver 9.9.9.9\nnameserver 1.1.1.1",
        "etc/timezone": config.timezone,
        "etc/default/locale": f"LANG={config.locale}",
        "etc/machine-id": uuid.uuid4().hex,
    }
    for path, text in texts.items():
        yield _entry(path, 0o444 if path == "etc/machine-id" else 0o644), (text + "\n").encode()
    link = _entry("etc/localtime", 0o777)
    link.type, link.linkname = tarfile.SYMTYPE, f"/usr/share/zoneinfo/{config.timezone}"
    yield link, b""


def _tree(definition: Definition, accounts: _Accounts) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    permissions = dict(definition.config.permissions)
    for source in sorted(definition.files.rglob("*")):
        path = "/" + str(source.relative_to(definition.files))
        special = permissions.pop(path, None)
        if (
            source.is_dir()
            and not source.is_symlink()
            and special is None
            and path not in accounts.homes
            and not _under_home(path, accounts)
        ):
            continue
        entry = _entry(path[1:], 0o755 if source.is_dir() or os.access(source, os.X_OK) else 0o644)
        entry.uid, entry.gid = accounts.owner_of(path)
        if special is not None:
            entry.uid = _id(special.owner, accounts.uids, entry.uid, path)
            entry.gid = _id(special.group, accounts.gids, entry.gid, path)
            entry.mode = int(special.mode, 8) if special.mode is not None else entry.mode
        if source.is_symlink():
            entry.type, entry.linkname = tarfile.SYMTYPE, str(source.readlink())
            yield entry, b""
        elif source.is_dir():
            if path in accounts.homes and special is None:
                continue
            entry.type = tarfile.DIRTYPE
            yield entry, b""
        else:
            yield entry, source.read_bytes()
    if permissions:
        raise ImageError(
            f"image {definition.name}: `permissions` names files that are not in its tree: {', '.join(sorted(permissions))}"
        )


def _under_home(path: str, accounts: _Accounts) -> bool:
    return accounts.owner_of(path) != (0, 0)


def _id(name: str | None, ids: dict[str, int], default: int, path: str) -> int:
    if name is None:
        return default
    if name not in ids:
        raise ImageError(f"`permissions` of {path} names {name!r}, which the image does not have")
    return ids[name]


def _entry(path: str, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path)
    entry.mode, entry.mtime = mode, int(time.time())
    return entry


def _unpack(rootfs: Path, entries: Iterator[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Lay files with the image's own tar, from inside: a link in the image cannot lead a write out of it."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry, content in entries:
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    inside(rootfs, ["tar", "-xp", "--numeric-owner", "--keep-directory-symlink", "-C", "/", "-f", "-"], packed.getvalue())


# ---- traces and times


def _remove_traces(rootfs: Path) -> None:
    for path in _TRACES:
        (rootfs / path).unlink(missing_ok=True)
    for folder in ("etc/apt/sources.list.d", "var/lib/apt/lists", "run"):
        _empty(rootfs / folder)


def _empty(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():
        return
    status = folder.stat()
    subprocess.run(["find", str(folder), "-xdev", "-mindepth", "1", "-delete"], check=False, stdin=subprocess.DEVNULL)
    os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns))


def _age(rootfs: Path, since: float, seconds: int) -> None:
    """Move every time since `since` back, so that the system seems to have been installed before it was built."""
    for folder, folders, files in os.walk(rootfs, topdown=False):
        for name in (*files, *folders):
            path = os.path.join(folder, name)  # noqa: PTH118 (twenty thousand paths)
            status = os.lstat(path)
            if status.st_mtime >= since:
                os.utime(path, (status.st_mtime - seconds, status.st_mtime - seconds), follow_symlinks=False)
