"""The OCI runtime (runc, crun or runsc): what it is told, and how it is run."""

import asyncio
import json
import os
import shutil
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from hermes.broker.policy import CPU_PERIOD, MASKED_PATHS, READONLY_PATHS, Policy
from hermes.errors import EngineError

MAX_TERMINALS = 64
"""Pseudo-terminals one box can have open: all boxes share the kernel's 4096."""

_ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux")


def config(
    policy: Policy,
    *,
    init: tuple[str, ...],
    hostname: str,
    base: int,
    cgroup: str,
    swap: bool,
    bpf: str | None = None,
    sandboxed: bool = False,
) -> dict[str, Any]:
    """The runtime's config.json. `base` is the host's uid and gid of the box's root; `swap`: the kernel counts swap.

    With `bpf` (base64), crun takes that instead of compiling the seccomp profile for each box anew. `sandboxed`: for gVisor.
    """
    ids = [{"containerID": 0, "hostID": base, "size": 65536}]
    memory = {"limit": policy.limits.memory} | ({"swap": policy.limits.memory} if swap else {})
    capabilities = policy.capabilities
    return {
        "ociVersion": "1.0.2",
        "hostname": hostname,
        "root": {"path": "rootfs", "readonly": False},
        "annotations": {"run.oci.seccomp_bpf_data": bpf} if bpf else {},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "umask": 0o022},
            "args": list(init),
            "env": list(_ENVIRONMENT),
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": name, "soft": value, "hard": value} for name, value in policy.rlimits.items()],
            "noNewPrivileges": policy.security.no_new_privileges,
            "oomScoreAdj": 0,
        },
        "mounts": _mounts(policy),
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network", "cgroup", "user")],
            "uidMappings": ids,
            "gidMappings": ids,
            "cgroupsPath": cgroup,
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "seccomp": policy.oci_seccomp(),
            "resources": {
                "devices": [{"allow": False, "access": "rwm"}],
                "memory": memory,
                "pids": {"limit": sandbox_pids(policy.limits.pids) if sandboxed else policy.limits.pids},
                "cpu": {"quota": int(CPU_PERIOD * policy.limits.cpus), "period": CPU_PERIOD, "shares": BOOT_SHARES},
            },
        },
    }


def _mounts(policy: Policy) -> list[dict[str, Any]]:
    shm = policy.limits.memory // 4 // 1024
    terminals = ("newinstance", "ptmxmode=0666", "mode=0620", "gid=5", f"max={MAX_TERMINALS}")
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "udev",
            "options": ["nosuid", "mode=755", "size=4m", "nr_inodes=4096"],
        },
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", *terminals]},
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", f"size={shm}k"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/run", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", "mode=755", f"size={shm}k"]},
    ]


def sandbox_pids(pids: int) -> int:
    """Tasks of the host that `pids` processes of a gVisor box may take: up to three each, and those of its kernel and its gofer.

    At the limit that kernel dies, and the box with it.
    """
    return 3 * pids + 128


BOOT_SHARES = 64
"""CPU weight (cgroup v1 shares, 1024 being usual) of a box until it is opened: sessions come before boxes that boot."""
BOOT_NICE = 10
"""Nice value of the runtime that makes a box, and of the box's processes until it is opened."""


RUNSC_FLAGS = (
    "--network=none",
    "--overlay2=none",
    "--file-access=shared",
    "--directfs=false",
    "--host-uds=none",
    "--host-fifo=none",
)
"""How gVisor is to run: what is written goes at once through a gofer to the box's own overlay, where it is kept, instead of
staying in memory for a while; and the sandbox itself can open nothing of the host."""


class Runtime:
    """runc, crun or runsc, with its state below `state`."""

    def __init__(self, program: str, state: Path) -> None:
        self.program = program
        self.state = state
        self.is_runsc = Path(program).name == "runsc"
        """It is gVisor's: a box has a kernel of its own, and no spawner can enter it."""
        self.arguments = ("--root", str(state), *(RUNSC_FLAGS if self.is_runsc else ()))
        """What stands before every command."""

    @property
    def is_crun(self) -> bool:
        """It is crun, which takes ready-made BPF."""
        return Path(self.program).name == "crun"

    async def run(self, container_id: str, bundle: Path) -> int:
        """Bring the container of `bundle` to life; return the pid of its init. `EngineError` says what the runtime said.

        When cancelled, the runtime is killed; what it made until then is the caller's to remove.
        """
        pid_file, log = bundle / "pid", bundle / "log"
        arguments = (*self.arguments, "--log", str(log), "--log-format", "json")
        command = (*arguments, "run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), container_id)
        null = asyncio.subprocess.DEVNULL
        if not os.access(self.program, os.X_OK):
            raise EngineError(f"{self.program} cannot be run")
        try:
            process = await asyncio.create_subprocess_exec(
                "nice", "-n", str(BOOT_NICE), self.program, *command, stdin=null, stdout=null, stderr=null, start_new_session=True
            )
        except OSError as error:
            raise EngineError(f"{self.program} cannot be run: {error.strerror}") from error
        try:
            status = await process.wait()
        except BaseException:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            raise
        if status != 0:
            raise EngineError(f"{self.program} run failed: {_last_error(log) or f'exit status {status}'}")
        return int(pid_file.read_text())


def forget(state: Path, container_id: str) -> None:
    """Remove what a runtime keeps in `state` of a container of which nothing runs any more."""
    shutil.rmtree(state / container_id, ignore_errors=True)
    for name in (f"{container_id}_sandbox:{container_id}.state", f"{container_id}_sandbox:{container_id}.lock"):
        (state / name).unlink(missing_ok=True)
    (state / f"runsc-{container_id}.sock").unlink(missing_ok=True)


TMP = (".ICE-unix", ".X11-unix")
"""What X leaves in a /tmp. Over an empty one gVisor mounts a tmpfs, of which nothing could be kept."""


def occupy_tmp(rootfs: Path, base: int) -> None:
    """Put that into the /tmp of a fresh box."""
    for name in TMP:
        directory = rootfs / "tmp" / name
        directory.mkdir(exist_ok=True)
        directory.chmod(0o1777)
        os.chown(directory, base, base)


def _last_error(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    for line in reversed(lines):
        try:
            return str(json.loads(line)["msg"])
        except (ValueError, KeyError, TypeError):
            continue
    return ""
