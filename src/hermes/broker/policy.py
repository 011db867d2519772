"""What an attacker who is root in a box may do: one policy, in the form each engine and the spawner needs."""

import json
import resource
from functools import cached_property

from hermes.broker import seccomp
from hermes.broker.confinement import Confinement
from hermes.broker.linux import capability_mask
from hermes.config.models import LimitsConfig, SecurityConfig

MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/kernel/security",
    "/proc/diskstats", "/proc/fs/ext4", "/proc/partitions", "/sys/block", "/sys/class/block", "/sys/dev/block",
    "/sys/devices/virtual/bdi", "/sys/devices/virtual/block", "/sys/fs/ext4",
)  # fmt: skip
"""Files and directories of the kernel that a box sees empty. The last nine show every other box's disk, and where it lies."""

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Files and directories of the kernel that a box cannot write."""

CORE_LIMIT = 1
"""Bytes. 0 does not stop the kernel from piping a core to a program of the host (core(5)); 1 does, and `ulimit -c` says 0."""

CPU_PERIOD = 100_000
"""Microseconds over which the CPU quota is counted."""

MEMLOCK_LIMIT = 8 << 20
"""Bytes a process may lock in memory: what systemd lets every service, and the kernel anyone."""


class Policy:
    """The security and limits of every box of one pool. `ConfigError` if a seccomp profile cannot be used.

    Which capabilities may be kept at all, the configuration decides (`hermes.config`).
    """

    def __init__(self, security: SecurityConfig, limits: LimitsConfig) -> None:
        self.security = security
        self.limits = limits
        self._profile = seccomp.load(security.seccomp_profile) if security.seccomp_profile else seccomp.builtin()

    @property
    def capabilities(self) -> list[str]:
        """Capabilities kept, with `CAP_`, as OCI and Docker name them."""
        return [f"CAP_{name}" for name in self.security.capabilities]

    @property
    def rlimits(self) -> dict[str, int]:
        """Soft and hard limit by name, such as `RLIMIT_NOFILE`."""
        return {
            "RLIMIT_NOFILE": self.limits.open_files,
            "RLIMIT_FSIZE": self.limits.file_size,
            "RLIMIT_CORE": CORE_LIMIT,
            "RLIMIT_MEMLOCK": MEMLOCK_LIMIT,
            "RLIMIT_RTPRIO": 0,
            "RLIMIT_NICE": 0,
        }

    @property
    def cpu_burst(self) -> int:
        """Microseconds that may be used on top of the quota in one period; the kernel takes no more than the quota."""
        return int(CPU_PERIOD * min(self.limits.cpu_burst, self.limits.cpus))

    @cached_property
    def _resolved(self) -> seccomp.Profile:
        return seccomp.resolved(self._profile, frozenset(self.security.capabilities))

    @cached_property
    def _bpf(self) -> bytes:
        return seccomp.compile_bpf(self._resolved)

    def oci_seccomp(self) -> seccomp.Profile:
        """The seccomp profile as OCI's `linux.seccomp`."""
        return self._resolved

    def docker_seccomp(self) -> str:
        """The seccomp profile as Docker's `--security-opt seccomp=` takes it (the JSON itself, not a path)."""
        return json.dumps(self._resolved)

    def bpf(self) -> bytes:
        """The seccomp profile compiled: an array of `struct sock_filter`."""
        return self._bpf

    def confinement(self) -> Confinement:
        """What the spawner submits to."""
        return Confinement(
            capabilities=capability_mask(self.security.capabilities),
            rlimits={getattr(resource, name): value for name, value in self.rlimits.items()},
            no_new_privileges=self.security.no_new_privileges,
            seccomp=self.bpf(),
        )
