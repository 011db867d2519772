"""All that the checks of `hermes.broker.machine` ask of the machine, in one small object: tests give other answers."""

import ctypes
import errno
import fcntl
import http.client
import json
import os
import pwd
import resource
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from hermes.broker import cgroups, programs
from hermes.confine import landlock

_PATIENCE = 20.0


class Machine:
    """The real machine, asked. A method that finds nothing says so by its value; none raises `OSError`."""

    def is_root(self) -> bool:
        """This process is root."""
        return os.geteuid() == 0

    def kernel(self) -> str:
        """The kernel's release, such as `6.1.0-28-amd64`."""
        return os.uname().release

    def read(self, path: str) -> str | None:
        """Text of a small file, stripped; None when it cannot be read."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return None

    def which(self, program: str) -> str | None:
        """Where a program is found."""
        return programs.which(program)

    def run(self, *argv: str) -> tuple[int, str]:
        """Exit status of a command and what it said last; -1 when it cannot be run or does not end in time."""
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_PATIENCE,
                check=False,
                text=True,
                errors="replace",
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return -1, str(error)
        return done.returncode, (done.stdout.strip().splitlines() or [""])[-1]

    def has_library(self, name: str) -> bool:
        """The shared library can be loaded."""
        try:
            ctypes.CDLL(name)
        except OSError:
            return False
        return True

    def landlock(self) -> int:
        """The version of Landlock that the kernel has; 0 for none."""
        return landlock.abi()

    def controllers(self) -> frozenset[str]:
        """The cgroup controllers that can be used, of whatever version."""
        found: set[str] = set()
        for tree in cgroups.hierarchies():
            found |= tree.controllers or set((self.read(f"{tree.mount}/cgroup.controllers") or "").split())
        return frozenset(found)

    def has_user(self, name: str) -> bool:
        """The system knows the user."""
        try:
            pwd.getpwnam(name)
        except KeyError:
            return False
        return True

    def stat(self, path: Path) -> os.stat_result | None:
        """Status of a file, links not followed; None when there is none."""
        try:
            return path.lstat()
        except OSError:
            return None

    def free_bytes(self, path: Path) -> int | None:
        """Bytes free on the file system of an existing path."""
        try:
            return shutil.disk_usage(path).free
        except OSError:
            return None

    def open_files(self) -> int:
        """Hard limit of open files; -1 for none."""
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def listen_error(self, host: str, port: int) -> int:
        """What the kernel says to listening there: 0, or an errno. Names are not resolved."""
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
            )[0]
            with socket.socket(family, kind, protocol) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(address)
        except socket.gaierror:
            return errno.EADDRNOTAVAIL
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def is_running(self, data_dir: Path) -> bool:
        """A Hermes holds this data directory."""
        try:
            with (data_dir / "lock").open("rb") as held:
                fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def docker_version(self, host: str) -> dict[str, object] | str:
        """What a Docker daemon says of itself at `/version`, or why it says nothing."""
        return self._ask_docker(host, "/version")

    def docker_info(self, host: str) -> dict[str, object] | str:
        """What it says at `/info`."""
        return self._ask_docker(host, "/info")

    def _ask_docker(self, host: str, path: str) -> dict[str, object] | str:
        try:
            connection = _docker_connection(host)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                body = answer.read(65536)
            finally:
                connection.close()
            value = json.loads(body)
        except (OSError, http.client.HTTPException, ValueError) as error:
            return str(getattr(error, "strerror", None) or error)
        return value if answer.status == 200 and isinstance(value, dict) else f"it answers with status {answer.status}"


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=_PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _docker_connection(host: str) -> http.client.HTTPConnection:
    if host.startswith("unix://"):
        return _UnixConnection(host.removeprefix("unix://"))
    parts = urlsplit(host)
    return http.client.HTTPConnection(parts.hostname or "", parts.port or 2375, timeout=_PATIENCE)
