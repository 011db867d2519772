"""What an attacker who is root in a box may do: one policy, in the form each engine and the spawner needs."""

import json
import resource
from functools import cached_property

from hermes.broker import seccomp
from hermes.broker.confinement import Confinement
from hermes.broker.linux import CAPABILITIES, capability_mask
from hermes.config.models import LimitsConfig, SecurityConfig
from hermes.errors import ConfigError

MASKED_PATHS = (
    "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
    "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware", "/sys/kernel/security",
)  # fmt: skip
"""Files and directories of the kernel that a box sees empty."""

READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Files and directories of the kernel that a box cannot write."""

FORBIDDEN_CAPABILITIES = frozenset(
    {
        "AUDIT_CONTROL", "AUDIT_READ", "BPF", "CHECKPOINT_RESTORE", "DAC_READ_SEARCH", "IPC_LOCK", "LINUX_IMMUTABLE", "MAC_ADMIN",
        "MAC_OVERRIDE", "MKNOD", "NET_ADMIN", "PERFMON", "SYS_ADMIN", "SYS_BOOT", "SYS_MODULE", "SYS_NICE", "SYS_PACCT",
        "SYS_PTRACE", "SYS_RAWIO", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND",
    }
)  # fmt: skip
"""Capabilities that reach outside a box, or open so much of the kernel that they might; no configuration grants them."""

CORE_LIMIT = 1
"""Bytes. 0 does not stop the kernel from piping a core to a program of the host (core(5)); 1 does, and `ulimit -c` says 0."""


class Policy:
    """The security and limits of every box of one pool. `ConfigError` if the configuration asks for what must not be."""

    def __init__(self, security: SecurityConfig, limits: LimitsConfig) -> None:
        for name in security.capabilities:
            if name not in CAPABILITIES:
                raise ConfigError(f"container_pool.security.capabilities: {name!r} is no capability (write it as in NET_RAW)")
            if name in FORBIDDEN_CAPABILITIES:
                raise ConfigError(f"container_pool.security.capabilities: {name} reaches outside the container and is refused")
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
        return {"RLIMIT_NOFILE": self.limits.open_files, "RLIMIT_FSIZE": self.limits.file_size, "RLIMIT_CORE": CORE_LIMIT}

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
