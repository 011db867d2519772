"""Every check with both its ends, on a machine made of given answers."""

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from hermes.broker import image, machine
from hermes.broker.machine import Result, State, examine, require
from hermes.broker.machine_facts import Machine
from hermes.config import Settings
from hermes.errors import ImageError, MachineError

GB = 1024**3


@dataclass
class GivenMachine(Machine):
    """Answers as told; by default as a good machine does."""

    root: bool = True
    release: str = "6.1.0-28-amd64"
    files: dict[str, str | None] = field(default_factory=dict)
    programs: set[str] = field(
        default_factory=lambda: {"runc", "crun", "mmdebstrap", "tar", "setpriv", "unshare", "mkfs.ext4", "debugfs", "dumpe2fs"}
    )
    outcomes: dict[str, tuple[int, str]] = field(default_factory=dict)
    libraries: set[str] = field(default_factory=lambda: {"libseccomp.so.2"})
    landlock_abi: int = 7
    cgroups: frozenset[str] = frozenset({"memory", "pids", "cpu", "io"})
    users: set[str] = field(default_factory=lambda: {"hermes"})
    places: dict[str, tuple[int, int]] = field(default_factory=lambda: {"/": (0o40755, 0), "/var": (0o40755, 0)})
    free: int | None = 50 * GB
    nofile: int = 1_048_576
    listening: int = 0
    running: bool = False
    security: list[str] = field(default_factory=lambda: ["name=seccomp,profile=default", "name=userns"])
    docker: dict[str, object] | str = field(default_factory=lambda: dict[str, object](Version="20.10", ApiVersion="1.41"))
    info: dict[str, object] | str = field(
        default_factory=lambda: dict[str, object](SecurityOptions=["name=seccomp", "name=userns"])
    )

    def is_root(self) -> bool:
        return self.root

    def kernel(self) -> str:
        return self.release

    def read(self, path: str) -> str | None:
        return self.files.get(path, "1")

    def which(self, program: str) -> str | None:
        return f"/usr/bin/{program}" if program in self.programs else None

    def run(self, *argv: str) -> tuple[int, str]:
        return next((outcome for word, outcome in self.outcomes.items() if word in " ".join(argv)), (0, ""))

    def has_library(self, name: str) -> bool:
        return name in self.libraries

    def landlock(self) -> int:
        return self.landlock_abi

    def controllers(self) -> frozenset[str]:
        return self.cgroups

    def has_user(self, name: str) -> bool:
        return name in self.users

    def stat(self, path: Path) -> os.stat_result | None:
        if (found := self.places.get(str(path))) is None:
            return None
        return cast(os.stat_result, SimpleNamespace(st_mode=found[0], st_uid=found[1], st_gid=found[1]))

    def free_bytes(self, path: Path) -> int | None:
        return self.free

    def open_files(self) -> int:
        return self.nofile

    def listen_error(self, host: str, port: int) -> int:
        return self.listening

    def is_running(self, data_dir: Path) -> bool:
        return self.running

    def docker_info(self, host: str) -> dict[str, object] | str:
        return {"SecurityOptions": self.security}

    def docker_version(self, host: str) -> dict[str, object] | str:
        return self.docker

    def docker_info(self, host: str) -> dict[str, object] | str:
        return self.info


LOCAL = Settings()
DOCKER = Settings.model_validate({"container_pool": {"engine": "docker"}})
TMPFS = Settings.model_validate({"container_pool": {"limits": {"disk_backing": "tmpfs", "disk": "64M"}}})
RUNSC = Settings.model_validate({"container_pool": {"runtime": "runsc"}})


def _runsc(outcome: tuple[int, str]) -> dict[str, object]:
    return {"programs": {"runsc"}, "outcomes": {"runsc": outcome}}


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is there."""
    monkeypatch.setattr(image, "get", lambda *args, **more: None)


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is not there."""

    def get(*args: object, **more: object) -> None:
        raise ImageError("image debian-12 is not built; run this")

    monkeypatch.setattr(image, "get", get)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize("settings", [LOCAL, DOCKER], ids=["local", "docker"])
def test_a_good_machine_passes_every_check(settings: Settings) -> None:
    results = examine(settings, GivenMachine())
    assert [result for result in results if result.state is not State.OK] == []
    assert all(result.detail and not result.fix for result in results)
    assert len({result.name for result in results}) == len(results) >= 10
    require(settings, GivenMachine())


CASES: list[tuple[str, Settings, dict[str, Any], State, str, str]] = [
    ("root", LOCAL, {"root": False}, State.FAILED, "not running as root", "sudo"),
    ("kernel", LOCAL, {"release": "5.15.0-91-generic"}, State.FAILED, "5.19 is needed", "Ubuntu 24.04"),
    ("kernel", LOCAL, {"release": "5.18"}, State.FAILED, "5.18", "Debian 12"),
    ("kernel", LOCAL, {"release": "7.0-rc1"}, State.OK, "7.0", ""),
    ("kernel", DOCKER, {"release": "5.15.0-91-generic"}, State.OK, "5.15", ""),
    ("kernel", DOCKER, {"release": "4.19.0"}, State.FAILED, "5.8 is needed", "Debian 12"),
    ("user", LOCAL, {"users": set()}, State.FAILED, "no system user hermes", "useradd --system"),
    ("data_dir", LOCAL, {"places": {"/var/lib/hermes": (0o100644, 0)}}, State.FAILED, "not a directory", "data_dir"),
    ("data_dir", LOCAL, {"places": {"/var/lib": (0o100644, 0)}}, State.FAILED, "/var/lib is not a directory", "data_dir"),
    ("data_dir", LOCAL, {"places": {"/var/lib": (0o40755, 1000)}}, State.WARNING, "others than root", "only root"),
    ("data_dir", LOCAL, {"places": {"/var/lib": (0o40777, 0)}}, State.WARNING, "others than root", "only root"),
    ("data_dir", LOCAL, {"places": {"/var/lib": (0o41777, 0)}}, State.OK, "/var/lib/hermes", ""),
    ("disk", LOCAL, {"free": GB}, State.WARNING, "1.0 GB free", "larger disk"),
    ("disk", LOCAL, {"free": GB // 8}, State.FAILED, "0.1 GB free", "Free 129 MB"),
    ("disk", LOCAL, {"free": None}, State.WARNING, "cannot be read", ""),
    ("ports", LOCAL, {"listening": errno.EADDRINUSE}, State.FAILED, "port 2222 on 127.0.0.1 is taken", "server.port"),
    ("ports", LOCAL, {"listening": errno.EADDRNOTAVAIL}, State.FAILED, "no address 127.0.0.1", "server.addresses"),
    ("ports", LOCAL, {"listening": errno.EACCES}, State.FAILED, "Permission denied", "server.port"),
    ("ports", LOCAL, {"listening": errno.EADDRINUSE, "running": True}, State.OK, "is running", ""),
    ("open files", LOCAL, {"nofile": 1024}, State.WARNING, "limit 1024", "LimitNOFILE="),
    ("open files", LOCAL, {"nofile": 64}, State.FAILED, "limit 64", "ulimit"),
    ("open files", LOCAL, {"nofile": -1}, State.OK, "any number", ""),
    ("seccomp", LOCAL, {"libraries": set()}, State.FAILED, "libseccomp.so.2", "apt-get install -y libseccomp2"),
    ("seccomp", LOCAL, {"files": {"/proc/sys/kernel/seccomp/actions_avail": None}}, State.FAILED, "no seccomp", "CONFIG_SECCOMP"),
    ("landlock", LOCAL, {"landlock_abi": 0}, State.WARNING, "has no Landlock", "lsm="),
    ("landlock", LOCAL, {"landlock_abi": 3}, State.WARNING, "not restrict TCP (6.7), signals", "newer kernel"),
    ("landlock", LOCAL, {"landlock_abi": 6}, State.OK, "version 6", ""),
    ("user namespaces", LOCAL, {"files": {"/proc/sys/user/max_user_namespaces": "0"}}, State.FAILED, "allows none", "sysctl -w"),
    ("user namespaces", LOCAL, {"files": {"/proc/sys/user/max_user_namespaces": None}}, State.FAILED, "allows none", "sysctl"),
    ("user namespaces", LOCAL, {"root": False}, State.WARNING, "not tried", "sudo"),
    (
        "user namespaces", LOCAL,
        {"outcomes": {"unshare": (1, "Operation not permitted")}, "files": {"/proc/sys/kernel/unprivileged_userns_clone": "0"}},
        State.FAILED, "not permitted", "unprivileged_userns_clone=1",
    ),
    (
        "user namespaces", LOCAL, {"outcomes": {"unshare": (1, "Operation not permitted")}},
        State.FAILED, "not permitted", "apparmor_restrict_unprivileged_userns=0",
    ),
    (
        "user namespaces", LOCAL,
        {"outcomes": {"unshare": (1, "no")}, "files": {"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": None}},
        State.FAILED, "no", "not inside a container",
    ),
    ("overlay", LOCAL, {"root": False}, State.WARNING, "not tried", "sudo"),
    ("overlay", LOCAL, {"outcomes": {"probe overlay": (1, "mount x: No such device")}}, State.FAILED, "no overlay", "modprobe"),
    ("overlay", LOCAL, {"outcomes": {"probe overlay": (1, "mount_setattr: Invalid argument")}}, State.FAILED, "Invalid", "ext4"),
    ("box disk", LOCAL, {"root": False}, State.WARNING, "not tried", "sudo"),
    ("box disk", LOCAL, {"programs": {"mkfs.ext4"}}, State.FAILED, "debugfs", "apt-get install -y e2fsprogs"),
    ("box disk", LOCAL, {"outcomes": {"probe disk": (1, "no loop devices")}}, State.FAILED, "loop", "modprobe loop"),
    ("box disk", LOCAL, {"outcomes": {"probe disk": (1, "no space left")}}, State.FAILED, "no space", "disk_backing to tmpfs"),
    ("box disk", TMPFS, {"programs": set()}, State.OK, "tmpfs", ""),
    ("cgroups", LOCAL, {"cgroups": frozenset({"cpu", "pids"})}, State.FAILED, "control of memory", "cgroup_enable=memory"),
    ("cgroups", LOCAL, {"cgroups": frozenset({"memory", "cpu"})}, State.FAILED, "control of pids", "mount -t cgroup2"),
    ("runtime", LOCAL, {"programs": set()}, State.FAILED, "crun is not installed; runc is not", "apt-get install -y runc"),
    ("runtime", LOCAL, {"outcomes": {"crun": (1, "broken")}}, State.OK, "/usr/bin/runc", ""),
    ("runtime", RUNSC, {}, State.FAILED, "runsc is not installed", "-t bookworm-backports runsc"),
    ("runtime", RUNSC, _runsc((127, "broken")), State.FAILED, "runsc does not run: broken", "runsc"),
    ("runtime", RUNSC, _runsc((0, "runsc version 0.0~20221219.0")), State.FAILED, "is of 20221219", "bookworm-backports runsc"),
    ("runtime", RUNSC, _runsc((0, "runsc version release-20250101.0")), State.OK, "release-20250101.0", ""),
    ("runtime", RUNSC, _runsc((0, "runsc version VERSION_MISSING")), State.OK, "VERSION_MISSING", ""),
    ("runtime", LOCAL, {"outcomes": {"run": (127, "broken")}}, State.FAILED, "does not run: broken", "runc"),
    ("docker users", DOCKER, {"security": ["name=seccomp"]}, State.WARNING, "is root of the daemon's machine", "userns-remap"),
    ("docker users", DOCKER, {"security": ["name=rootless"]}, State.OK, "nobody outside", ""),
    ("docker", DOCKER, {"docker": "Connection refused"}, State.FAILED, "no Docker daemon answers", "docker.io"),
    ("docker", DOCKER, {"docker": {"Version": "18.09", "ApiVersion": "1.39"}}, State.FAILED, "too old", "20.10"),
    ("docker", DOCKER, {"docker": {}}, State.FAILED, "too old", "20.10"),
]  # fmt: skip


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("name", "settings", "facts", "state", "detail", "fix"), CASES)
def test_a_check_ends_as_the_machine_is(
    name: str, settings: Settings, facts: dict[str, Any], state: State, detail: str, fix: str
) -> None:
    result = named(examine(settings, GivenMachine(**facts)), name)
    assert result.state is state
    assert detail in result.detail
    assert fix in result.fix
    assert bool(result.fix) == (state is not State.OK) or result.detail.endswith("cannot be read")
    assert "\n" not in result.detail + result.fix


def named(results: list[Result], name: str) -> Result:
    return next(result for result in results if result.name == name)


@pytest.mark.usefixtures("unbuilt")
@pytest.mark.parametrize(
    ("facts", "state", "said"),
    [
        ({}, State.WARNING, "hermes image build debian-12"),
        ({"programs": {"runc"}}, State.FAILED, "apt-get install -y mmdebstrap"),
        ({"programs": {"runc", "mmdebstrap", "tar"}}, State.FAILED, "apt-get install -y util-linux"),
        ({"files": {"/usr/share/keyrings/debian-archive-keyring.gpg": None}}, State.FAILED, "debian-archive-keyring"),
    ],
)
def test_an_image_that_is_not_built_can_be_or_not(facts: dict[str, Any], state: State, said: str) -> None:
    result = named(examine(LOCAL, GivenMachine(**facts)), "image")
    assert (result.state, said in result.fix) == (state, True)
    assert "is not built" in result.detail


@pytest.mark.usefixtures("unbuilt")
def test_building_an_image_needs_more_disk() -> None:
    assert named(examine(LOCAL, GivenMachine(free=GB - 1)), "disk").state is State.FAILED


def test_an_unknown_image_is_dockers_or_an_error() -> None:
    local, docker = (
        Settings.model_validate({"container_pool": {"engine": engine, "image": "alpine:3"}}) for engine in ("local", "docker")
    )
    assert named(examine(local, GivenMachine()), "image").state is State.FAILED
    assert named(examine(docker, GivenMachine()), "image").state is State.OK


@pytest.mark.usefixtures("built")
def test_require_names_everything_that_fails_and_nothing_else() -> None:
    with pytest.raises(MachineError) as caught:
        require(LOCAL, GivenMachine(users=set(), programs=set(), nofile=1024))
    whole = str(caught.value)
    assert whole.startswith("this machine is not ready: user: there is no system user hermes (useradd ")
    assert whole.endswith("(apt-get install -y runc)")
    assert "open files" not in whole
    assert "\n" not in whole


def test_every_check_is_part_of_the_examination() -> None:
    defined = {value for name, value in vars(machine).items() if name.startswith("check_")}
    assert defined == {*machine._ALWAYS, *machine._LOCAL, *machine._DOCKER}


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("info", "detail", "fix"),
    [
        ({"SecurityOptions": ["name=seccomp"]}, "root of the daemon's machine", "userns-remap"),
        ({}, "root of the daemon's machine", "userns-remap"),
        ("no answer", "not known: no answer", "Start the Docker daemon"),
    ],
)
def test_a_daemon_without_user_namespaces_is_a_warning(info: dict[str, object] | str, detail: str, fix: str) -> None:
    (result,) = [it for it in examine(DOCKER, GivenMachine(info=info)) if it.name == "docker users"]
    assert result.state is State.WARNING
    assert detail in result.detail
    assert fix in result.fix
    require(DOCKER, GivenMachine(info=info))
