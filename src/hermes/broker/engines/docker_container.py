"""How a Docker daemon is reached, what it is told to create, and how a container of this machine is known."""

import io
import os
import ssl
import tarfile
from pathlib import Path
from typing import Any

import aiohttp
from aiodocker import Docker

from hermes.broker.engines import exec_scripts
from hermes.broker.oci import TMP, sandbox_pids
from hermes.broker.policy import MASKED_PATHS, READONLY_PATHS, Policy
from hermes.config.models import ContainerPoolConfig
from hermes.errors import EngineError

INSTANCE_LABEL = "hermes.instance"
BOX_LABEL = "hermes.container"


def container_config(
    policy: Policy,
    config: ContainerPoolConfig,
    image: str,
    init: tuple[str, ...],
    labels: dict[str, str],
    *,
    gvisor: bool = False,
    disk: bool = False,
) -> dict[str, Any]:
    """What Docker is told to create. An empty `init` stands for a shell that does nothing. `disk`: the daemon can limit it."""
    limits = config.limits
    shm = limits.memory // 4
    return {
        "Image": image,
        "Hostname": config.hostname,
        "User": "0:0",
        "WorkingDir": "/",
        "Entrypoint": list(init) or ["/bin/sh", "-c", exec_scripts.KEEPALIVE, "init"],
        "Cmd": [],
        "Labels": labels,
        "Healthcheck": {"Test": ["NONE"]},
        "HostConfig": {
            **({} if config.runtime == "auto" else {"Runtime": config.runtime}),
            "NetworkMode": "none",
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Privileged": False,
            "Init": False,
            "CapDrop": ["ALL"],
            "CapAdd": list(policy.security.capabilities),
            "SecurityOpt": [
                f"seccomp={policy.docker_seccomp()}",
                *(["no-new-privileges:true"] if policy.security.no_new_privileges else []),
            ],
            "MaskedPaths": [*MASKED_PATHS, "/sys/fs/cgroup"],
            "ReadonlyPaths": list(READONLY_PATHS),
            "Memory": limits.memory,
            "MemorySwap": limits.memory,
            "PidsLimit": sandbox_pids(limits.pids) if gvisor else limits.pids,
            "NanoCpus": round(limits.cpus * 1e9),
            "CpuShares": max(2, limits.cpu_weight * 1024 // 100),
            **({"StorageOpt": {"size": str(limits.disk)}} if disk else {}),
            "ShmSize": shm,
            "Tmpfs": {"/run": f"rw,nosuid,nodev,mode=755,size={shm}"} if init else {},
            "Ulimits": [
                {"Name": name.removeprefix("RLIMIT_").lower(), "Soft": value, "Hard": value}
                for name, value in policy.rlimits.items()
            ],
            "LogConfig": {"Type": "none"},
            "RestartPolicy": {"Name": "no"},
        },
    }


def occupied_tmp() -> bytes:
    """A tar archive that puts into /tmp what it must hold for gVisor to leave it on the disk (see `oci.TMP`)."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in TMP:
            entry = tarfile.TarInfo(f"tmp/{name}")
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
            tar.addfile(entry)
    return archive.getvalue()


def is_of(container: str, cgroups: str) -> bool:
    """Whether a process with this `/proc/PID/cgroup` is one of the container with this full id."""
    return len(container) >= 32 and container in cgroups


def connect(host: str) -> Docker:
    """A client of the daemon, with as many connections at once as there are processes. TLS as `DOCKER_TLS_VERIFY` says."""
    connector: aiohttp.BaseConnector
    if host.startswith("unix://"):
        connector = aiohttp.UnixConnector(host.removeprefix("unix://"), limit=0)
    elif host.startswith("tcp://"):
        tls: ssl.SSLContext | bool = False
        if os.environ.get("DOCKER_TLS_VERIFY"):
            certificates = Path(os.environ.get("DOCKER_CERT_PATH") or Path.home() / ".docker")
            try:
                tls = ssl.create_default_context(cafile=certificates / "ca.pem")
                tls.load_cert_chain(certificates / "cert.pem", certificates / "key.pem")
            except OSError as error:
                raise EngineError(f"docker: the certificates in {certificates} cannot be used: {error}") from error
            host = f"https://{host.removeprefix('tcp://')}"
        connector = aiohttp.TCPConnector(limit=0, ssl=tls or True)
    else:
        raise EngineError(f"docker: container_pool.docker.host is {host!r}, not unix:///path or tcp://host:port")
    return Docker(url="unix://localhost" if host.startswith("unix://") else host, connector=connector)


def name_of(container_id: str) -> str:
    """What Docker knows a box's container by."""
    return f"hermes-{container_id}"


def pidfd_of(pid: int, container: str) -> int | None:
    """A pidfd of that process if it is the container's, on this machine."""
    try:
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    try:
        if is_of(container, Path(f"/proc/{pid}/cgroup").read_text()):
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    return None
