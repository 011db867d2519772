"""What this machine must have before Hermes can run on it: one small check a need, each of which says how to meet it.

A check is a function from the settings and a `Machine` to a `Result`.
"""

import errno
import os
import re
import resource
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hermes.broker import image
from hermes.broker.machine_facts import Machine
from hermes.config import Settings
from hermes.confine import landlock
from hermes.errors import HermesError, ImageError, MachineError

_APT = "apt-get install -y"
_IMAGE_BYTES = 1024**3
_COMFORTABLE_BYTES = 4 * 1024**3
_FILES_A_CONNECTION = 10
_DOCKER_API = (1, 41)
_RUNSC = 20240729
"""The oldest gVisor that is known to work."""


class State(Enum):
    """How a check ended. Hermes runs with warnings."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Result:
    """One need: whether it is met, what was found, and one command or sentence that helps (empty when all is well)."""

    name: str
    state: State
    detail: str
    fix: str = ""


Check = Callable[[Settings, Machine], Result]


def examine(settings: Settings, machine: Machine | None = None) -> list[Result]:
    """Run every check that the chosen engine calls for, in the order in which to mend things."""
    machine = machine or Machine()
    chosen = (*_ALWAYS, *(_LOCAL if settings.container_pool.engine == "local" else _DOCKER))
    return [check(settings, machine) for check in chosen]


def require(settings: Settings, machine: Machine | None = None) -> None:
    """Raise `MachineError`, naming in one line everything that fails and how to mend it."""
    failed = [result for result in examine(settings, machine) if result.state is State.FAILED]
    if failed:
        raise MachineError("this machine is not ready: " + "; ".join(f"{it.name}: {it.detail} ({it.fix})" for it in failed))


# ---- for every engine


def check_root(settings: Settings, machine: Machine) -> Result:
    """Hermes makes namespaces and mounts."""
    if machine.is_root():
        return Result("root", State.OK, "running as root")
    return Result("root", State.FAILED, "not running as root", "Run it with sudo")


def check_kernel(settings: Settings, machine: Machine) -> Result:
    """Overlays on idmapped mounts came with 5.19; pidfds, with which everything is waited for, with 5.4."""
    release = machine.kernel()
    needed = (5, 19) if settings.container_pool.engine == "local" else (5, 8)
    numbers = release.split("-")[0].split(".")[:2]
    found = tuple(int(number) for number in numbers if number.isdigit())
    if found >= needed:
        return Result("kernel", State.OK, f"Linux {release}")
    wanted = ".".join(map(str, needed))
    return Result("kernel", State.FAILED, f"Linux {release}, {wanted} is needed", "Use Debian 12, Ubuntu 24.04 or newer")


def check_user(settings: Settings, machine: Machine) -> Result:
    """The front gives up root for this user."""
    name = settings.sensor.user
    if machine.has_user(name):
        return Result("user", State.OK, f"{name} exists")
    fix = f"useradd --system --user-group --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin {name}"
    return Result("user", State.FAILED, f"there is no system user {name}", fix)


def check_data_dir(settings: Settings, machine: Machine) -> Result:
    """Whoever can write above the data directory could put a directory of their own in its place."""
    path = settings.data_dir.absolute()
    status = machine.stat(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        return Result("data_dir", State.FAILED, f"{path} is not a directory", "Set data_dir to another path")
    for parent in path.parents:
        status = machine.stat(parent)
        if status is None:
            continue
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISLNK(status.st_mode):
            return Result("data_dir", State.FAILED, f"{parent} is not a directory", "Set data_dir to another path")
        shared = stat.S_IWOTH | (stat.S_IWGRP if status.st_gid != 0 else 0)
        open_to_others = stat.S_ISDIR(status.st_mode) and status.st_mode & shared and not status.st_mode & stat.S_ISVTX
        if status.st_uid != 0 or open_to_others:
            fix = "Set data_dir to a path that only root can change, such as /var/lib/hermes"
            return Result("data_dir", State.WARNING, f"{parent}, in which it lies, can be changed by others than root", fix)
    return Result("data_dir", State.OK, str(path))


def check_disk(settings: Settings, machine: Machine) -> Result:
    """The image takes 0.4 GB, and 1 GB while it is built; recordings and stopped containers come on top."""
    path = _existing(settings.data_dir, machine)
    free = machine.free_bytes(path)
    if free is None:
        return Result("disk", State.WARNING, f"the free space of {path} cannot be read", "")
    needed = 256 * 1024**2 if _image_is_there(settings) else _IMAGE_BYTES
    detail = f"{free / 1024**3:.1f} GB free on {path}"
    if free < needed:
        return Result(
            "disk", State.FAILED, detail, f"Free {(needed - free) // 1024**2 + 1} MB there, or set data_dir to a larger disk"
        )
    if free < _COMFORTABLE_BYTES:
        return Result(
            "disk", State.WARNING, detail, "Recordings and stopped containers will need more: set data_dir to a larger disk"
        )
    return Result("disk", State.OK, detail)


def check_ports(settings: Settings, machine: Machine) -> Result:
    """Every address and port must be there and free."""
    if machine.is_running(settings.data_dir):
        return Result("ports", State.OK, "a Hermes on this data directory is running")
    for host, port in settings.server.endpoints:
        number = machine.listen_error(host, port)
        if number == errno.EADDRINUSE:
            fix = f"Stop what listens there (ss -ltnp 'sport = :{port}' names it), or set server.port to another"
            return Result("ports", State.FAILED, f"port {port} on {host} is taken", fix)
        if number == errno.EADDRNOTAVAIL:
            return Result(
                "ports", State.FAILED, f"this machine has no address {host}", "Set server.addresses to addresses it has"
            )
        if number:
            return Result(
                "ports", State.FAILED, f"cannot listen on {host} port {port}: {os.strerror(number)}", "Set server.port to another"
            )
    return Result("ports", State.OK, ", ".join(f"{host} port {port}" for host, port in settings.server.endpoints))


def check_open_files(settings: Settings, machine: Machine) -> Result:
    """A session takes about ten open files."""
    limit = machine.open_files()
    wanted = 256 + _FILES_A_CONNECTION * min(settings.server.max_connections, 65536)
    if limit in (-1, resource.RLIM_INFINITY) or limit >= wanted:
        return Result("open files", State.OK, f"up to {limit if limit > 0 else 'any number'}")
    fix = f"Raise it (ulimit -Hn {wanted}; LimitNOFILE={wanted} in a systemd unit) or lower server.max_connections"
    state = State.FAILED if limit < 256 else State.WARNING
    return Result("open files", state, f"limit {limit}; {settings.server.max_connections} connections may need {wanted}", fix)


def check_seccomp(settings: Settings, machine: Machine) -> Result:
    """The kernel filters system calls, and the library that makes the filters is there."""
    if not machine.read("/proc/sys/kernel/seccomp/actions_avail"):
        return Result("seccomp", State.FAILED, "the kernel has no seccomp filters", "Use a kernel with CONFIG_SECCOMP_FILTER")
    if not machine.has_library("libseccomp.so.2"):
        return Result("seccomp", State.FAILED, "libseccomp.so.2 is missing", f"{_APT} libseccomp2")
    return Result("seccomp", State.OK, "filters and libseccomp are there")


def check_landlock(settings: Settings, machine: Machine) -> Result:
    """Landlock keeps the front from files, ports and signals, whatever its user could reach. Hermes runs without it."""
    version = machine.landlock()
    if not version:
        detail = "the kernel has no Landlock: only the front's user and its seccomp filter confine it"
        return Result("landlock", State.WARNING, detail, "Use Linux 6.12 or newer, with landlock in `lsm=` of its command line")
    if lacking := landlock.missing(version):
        detail = f"version {version} does not restrict {', '.join(lacking)}: only the front's user and its seccomp filter do"
        return Result("landlock", State.WARNING, detail, "Use a newer kernel")
    return Result("landlock", State.OK, f"version {version}: files, TCP, signals and abstract sockets")


def check_image(settings: Settings, machine: Machine) -> Result:
    """The image is built, or can be."""
    name = settings.container_pool.image
    try:
        definition = image.find(name)
    except ImageError as error:
        if settings.container_pool.engine == "docker":
            return Result("image", State.OK, f"{name} is left to Docker")
        return Result("image", State.FAILED, str(error), "Set container_pool.image to one of these")
    try:
        image.get(name, settings.data_dir, definition=definition)
    except HermesError as error:
        why = str(error).split(";")[0]
    else:
        return Result("image", State.OK, f"{name} is built")
    for program, package in (("mmdebstrap", "mmdebstrap"), ("tar", "tar"), ("setpriv", "util-linux"), ("unshare", "util-linux")):
        if machine.which(program) is None:
            return Result("image", State.FAILED, f"{why}, and {program}, which builds it, is missing", f"{_APT} {package}")
    if machine.read("/usr/share/keyrings/debian-archive-keyring.gpg") is None:
        return Result("image", State.FAILED, f"{why}, and Debian's keys are missing", f"{_APT} debian-archive-keyring")
    return Result("image", State.WARNING, f"{why}: the first start builds it (about a minute)", f"hermes image build {name}")


# ---- for the local engine


def check_user_namespaces(settings: Settings, machine: Machine) -> Result:
    """Root of a box is nobody outside."""
    name = "user namespaces"
    if machine.read("/proc/sys/user/max_user_namespaces") in (None, "0"):
        fix = "sysctl -w user.max_user_namespaces=15000 (and the same line in /etc/sysctl.d/)"
        return Result(name, State.FAILED, "the kernel allows none (user.max_user_namespaces)", fix)
    if not machine.is_root():
        return Result(name, State.WARNING, "not tried without root", "Run it with sudo")
    status, said = machine.run("unshare", "--user", "true")
    if status == 0:
        return Result(name, State.OK, "root can make them")
    if machine.read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return Result(name, State.FAILED, said, "sysctl -w kernel.unprivileged_userns_clone=1")
    if machine.read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return Result(name, State.FAILED, said, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
    return Result(name, State.FAILED, said, "Run Hermes on the machine itself, not inside a container that forbids it")


def check_overlay(settings: Settings, machine: Machine) -> Result:
    """The image is every box's lower layer, its owners shifted: tried on the very disk."""
    name = "overlay"
    if not machine.is_root():
        return Result(name, State.WARNING, "not tried without root", "Run it with sudo")
    place = _existing(settings.data_dir, machine)
    status, said = machine.run(sys.executable, "-P", "-m", "hermes.broker.machine_probe", "overlay", str(place))
    if status == 0:
        return Result(name, State.OK, f"overlays on idmapped directories work on {place}")
    if "No such device" in said:
        return Result(name, State.FAILED, "the kernel has no overlay file system", "modprobe overlay")
    return Result(name, State.FAILED, said, "Set data_dir to a directory on ext4, xfs or btrfs")


def check_box_disk(settings: Settings, machine: Machine) -> Result:
    """Each box has a disk of its own, an ext4 in a file: one is made and mounted."""
    name = "box disk"
    limits = settings.container_pool.limits
    if limits.disk_backing == "tmpfs":
        return Result(name, State.OK, "a tmpfs, in each box's memory")
    for program in ("mkfs.ext4", "debugfs", "dumpe2fs"):
        if machine.which(program) is None:
            return Result(name, State.FAILED, f"{program}, which makes a box's disk, is missing", f"{_APT} e2fsprogs")
    if not machine.is_root():
        return Result(name, State.WARNING, "not tried without root", "Run it with sudo")
    place = _existing(settings.data_dir, machine)
    status, said = machine.run(sys.executable, "-P", "-m", "hermes.broker.machine_probe", "disk", str(place))
    if status == 0:
        return Result(name, State.OK, "an ext4 in a file can be made and mounted")
    fix = "modprobe loop ext4" if "loop" in said or "No such device" in said else ""
    other = "set container_pool.limits.disk_backing to tmpfs, and limits.disk below limits.memory"
    return Result(name, State.FAILED, said, f"{fix}, or {other}" if fix else other.capitalize())


def check_cgroups(settings: Settings, machine: Machine) -> Result:
    """Memory, processes and CPU of a box are limited by control groups."""
    missing = sorted({"memory", "pids", "cpu"} - machine.controllers())
    if not missing:
        return Result("cgroups", State.OK, "memory, pids and cpu can be limited")
    what = ", ".join(missing)
    if "memory" in missing and machine.read("/proc/cgroups"):
        fix = "Boot with cgroup_enable=memory on the kernel's command line, and mount the cgroup file system"
    else:
        fix = "Mount the cgroup file system: mount -t cgroup2 none /sys/fs/cgroup"
    return Result("cgroups", State.FAILED, f"the kernel offers no control of {what}", fix)


def check_runtime(settings: Settings, machine: Machine) -> Result:
    """An OCI runtime is installed and runs."""
    wanted = settings.container_pool.runtime
    if wanted == "runsc":
        return _check_runsc(machine)
    programs = ("crun", "runc") if wanted == "auto" else (wanted,)
    said = []
    for program in programs:
        path = machine.which(program)
        if path is None:
            said.append(f"{program} is not installed")
            continue
        status, text = machine.run(path, "--version")
        if status == 0:
            return Result("runtime", State.OK, path)
        said.append(f"{path} does not run: {text}")
    return Result("runtime", State.FAILED, "; ".join(said), f"{_APT} {'runc' if wanted == 'auto' else wanted}")


def _check_runsc(machine: Machine) -> Result:
    """gVisor is there, and new enough for the programs of a Debian 12."""
    fix = f"{_APT} runsc (Debian 12: from bookworm-backports, {_APT} -t bookworm-backports runsc)"
    path = machine.which("runsc")
    if path is None:
        return Result("runtime", State.FAILED, "runsc is not installed", fix)
    status, text = machine.run("sh", "-c", '"$0" --version | head -n 1', path)
    if status != 0 or not text:
        return Result("runtime", State.FAILED, f"{path} does not run: {text}", fix)
    dates = [int(word) for word in re.findall(r"20\d{6}", text)]
    if dates and dates[0] < _RUNSC:
        return Result("runtime", State.FAILED, f"{path} is of {dates[0]}: programs of Debian 12 do not run in it", fix)
    return Result("runtime", State.OK, f"{path}, {text}")


# ---- for the docker engine


def check_docker(settings: Settings, machine: Machine) -> Result:
    """A daemon answers, and is new enough."""
    host = settings.container_pool.docker.host
    version = machine.docker_version(host)
    if isinstance(version, str):
        fix = f"{_APT} docker.io && systemctl start docker" if host.startswith("unix:") else "Set container_pool.docker.host"
        return Result("docker", State.FAILED, f"no Docker daemon answers at {host}: {version}", fix)
    api = str(version.get("ApiVersion", "0"))
    numbers = tuple(int(part) for part in api.split(".") if part.isdigit())
    detail = f"Docker {version.get('Version', '?')}, API {api}, at {host}"
    if numbers < _DOCKER_API:
        return Result("docker", State.FAILED, f"{detail}: too old", f"Install Docker 20.10 or newer: {_APT} docker.io")
    return Result("docker", State.OK, detail)


def check_docker_users(settings: Settings, machine: Machine) -> Result:
    """Root of a container is nobody on the daemon's machine."""
    name = "docker users"
    info = machine.docker_info(settings.container_pool.docker.host)
    if isinstance(info, str):
        return Result(name, State.WARNING, f"not known: {info}", "Start the Docker daemon")
    options = info.get("SecurityOptions")
    said = " ".join(map(str, options)) if isinstance(options, list) else ""
    if "name=userns" in said or "name=rootless" in said:
        return Result(name, State.OK, "root of a container is nobody outside")
    detail = "root of a container is root of the daemon's machine, held back by capabilities and seccomp only"
    return Result(name, State.WARNING, detail, 'Set "userns-remap": "default" in /etc/docker/daemon.json, and restart Docker')


def _existing(path: Path, machine: Machine) -> Path:
    path = path.absolute()
    return next((place for place in (path, *path.parents) if machine.stat(place) is not None), Path("/"))


def _image_is_there(settings: Settings) -> bool:
    try:
        image.get(settings.container_pool.image, settings.data_dir)
    except ImageError:
        return False
    return True


_ALWAYS: tuple[Check, ...] = (
    check_root, check_kernel, check_user, check_data_dir, check_disk, check_ports, check_open_files, check_seccomp,
    check_landlock, check_image,
)  # fmt: skip
_LOCAL: tuple[Check, ...] = (check_user_namespaces, check_overlay, check_box_disk, check_cgroups, check_runtime)
_DOCKER: tuple[Check, ...] = (check_docker, check_docker_users)
