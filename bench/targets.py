"""The servers that are measured: how each is started, asked for its processes, and ended. All listen on 127.0.0.1 only."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bench import procs
from bench.load import Server

PROJECT = Path(__file__).resolve().parent.parent
USER = "hermesbench"
CACHE = Path("/var/cache/hermes-bench")
"""Where Hermes's data lies during a run; between runs only the target images stay there, which take minutes to build."""
HOME = PROJECT / "images" / "debian-12" / "files" / "root"
"""What stands in the home of root in Hermes's boxes. Every server's shells start with it, so that none is
slower for its start-up files."""
INSTALLED_IMAGES = Path("/var/lib/hermes/images")


class Unavailable(Exception):
    """The server cannot be measured here; says why."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def answers(port: int) -> bool:
    """Whether an SSH server greets on this port."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def run(*argv: str, stdin: str | None = None) -> None:
    """Run a command to its end; Unavailable when it fails."""
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise Unavailable(f"{argv[0]}: {(done.stderr or done.stdout).strip()[-300:]}")


def remove(folder: Path) -> None:
    """Remove a folder, but nothing that is mounted in it."""
    run("rm", "-rf", "--one-file-system", str(folder))


class Process:
    """A server process in a session of its own, its output in a file; it gets SIGTERM when this one dies."""

    def __init__(self, argv: list[str], log: Path, *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> None:
        self.log = log
        with log.open("wb") as output:
            self._popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def wait_until(self, ready: Callable[[], bool], timeout: float) -> None:
        """Return when ready; Unavailable, with the end of the log, when the process ends first or the time is up."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self._popen.poll() is not None:
                raise Unavailable(f"ended with status {self._popen.returncode} at start: {self.last_words()}")
            if time.monotonic() > deadline:
                raise Unavailable(f"not ready after {timeout:.0f} s: {self.last_words()}")
            time.sleep(0.1)

    def last_words(self) -> str:
        """The last lines of its log."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-3:]) if lines else "it said nothing"

    def stop(self, timeout: float = 60) -> None:
        """SIGTERM, and SIGKILL to it and what it started if it does not end in time."""
        if self._popen.poll() is None:
            members = procs.tree([self.pid])
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(timeout)
            except subprocess.TimeoutExpired:
                for pid in members & procs.tree([self.pid]):
                    os.kill(pid, signal.SIGKILL)
                self._popen.wait(10)


class Target:
    """One server. `start` returns when it greets; figures are of all its processes, its sessions' included."""

    name: str
    user = "root"
    password = "root"
    pooled = False
    """It keeps boxes warm."""

    def __init__(self, work: Path, *, pool: int = 10) -> None:
        self.work = work / self.name
        self.pool = pool
        """Boxes to keep warm, where there are any."""
        self.port = free_port()
        self._process: Process | None = None

    def start(self) -> None:
        remove(self.work)
        self.work.mkdir(parents=True)
        self._process = self._launch()
        try:
            self._process.wait_until(lambda: answers(self.port), self.patience)
        except BaseException:
            self.stop()
            raise

    patience = 20.0
    """Seconds a start may take."""

    def _launch(self) -> Process:
        raise NotImplementedError

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    def last_words(self) -> str:
        """The last lines of its log."""
        return self._process.last_words() if self._process is not None else "it does not run"

    def server(self, *, quickack: bool = True) -> Server:
        return Server(port=self.port, user=self.user, password=self.password, quickack=quickack)

    def roots(self) -> list[int]:
        """The processes that everything else of this server descends from."""
        return [self._process.pid] if self._process is not None else []

    def cpu(self) -> float:
        """CPU seconds used so far by the server and every process it started, those that ended included."""
        return procs.cpu(self.roots())

    def processes(self) -> set[int]:
        """The server's own processes: not the sessions' shells, not what stands in a box."""
        return set(self.roots())

    def front(self) -> set[int]:
        """Those of its own processes in which a session's connection is kept."""
        return self.processes()

    def boxes(self) -> list[set[int]]:
        """The processes of each box."""
        return []

    def warm(self, count: int, timeout: float) -> None:
        """Return when `count` boxes stand. At once for servers without boxes; Unavailable when the time is up."""

    def tidy(self) -> None:
        """Throw away recordings of sessions that are over, so that hours of benchmarks fit on the disk."""


class Sshd(Target):
    """OpenSSH's sshd, with a throw-away user whose password hash is as cheap as sshd takes (SHA-512, 1000 rounds)."""

    name = "sshd"
    user = USER

    def _launch(self) -> Process:
        binary = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")
        if binary is None:
            raise Unavailable("no sshd: apt-get install openssh-server")
        self.password = secrets.token_urlsafe(18)
        run("chpasswd", "-c", "SHA512", "-s", "1000", stdin=f"{USER}:{self.password}\n")
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        key, config = self.work / "key", self.work / "sshd_config"
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        lines = [
            f"Port {self.port}", "ListenAddress 127.0.0.1", f"HostKey {key}", f"PidFile {self.work / 'pid'}",
            f"AllowUsers {USER}",
            "UsePAM no", "PasswordAuthentication yes", "KbdInteractiveAuthentication no", "PrintMotd no", "PrintLastLog no",
            "MaxStartups 1000", "MaxSessions 1000", "UseDNS no",
        ]  # fmt: skip
        config.write_text("\n".join(lines) + "\n")
        # Since 9.8 sshd turns away addresses that fail too often; every measured failure comes from one.
        penalties = subprocess.run(
            [binary, "-t", "-f", str(config), "-o", "PerSourcePenalties=no"], capture_output=True, check=False
        )
        extra = [] if penalties.returncode else ["-o", "PerSourcePenalties=no"]
        return Process([binary, "-D", "-e", "-f", str(config), *extra], self.work / "log")

    def processes(self) -> set[int]:
        # 9.8 and later: sshd-session and sshd-auth besides sshd.
        now = procs.stats()
        return {pid for pid in procs.tree(self.roots()) if pid in now and now[pid].name.startswith("sshd")}

    def stop(self) -> None:
        super().stop()
        run("usermod", "--lock", USER)


class Cowrie(Target):
    """Cowrie from PyPI with its own defaults, except that root/root gets in and the telnet port stays shut."""

    name = "cowrie"
    patience = 60.0

    def _launch(self) -> Process:
        twistd = Path(sys.prefix) / "bin" / "twistd"
        if not (Path(sys.prefix) / "bin" / "cowrie").exists():
            raise Unavailable("Cowrie is not installed in this Python environment")
        for folder in ("etc", "var/log/cowrie", "var/lib/cowrie/downloads", "var/lib/cowrie/tty", "var/run"):
            (self.work / folder).mkdir(parents=True)
        (self.work / "etc/userdb.txt").write_text("root:x:root\n")
        (self.work / "etc/cowrie.cfg").write_text(
            f"[ssh]\nlisten_endpoints = tcp:{self.port}:interface=127.0.0.1\n[telnet]\nenabled = false\n"
        )
        run("chown", "-R", f"{USER}:", str(self.work))
        # It refuses to run as root; the one capability lets it read a project that lies in root's home.
        drop = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups", "--pdeathsig", "TERM"]
        drop += ["--inh-caps", "-all,+dac_read_search", "--ambient-caps", "-all,+dac_read_search"]
        argv = [*drop, str(twistd), "--umask=0022", "-n", "--pidfile", "", "--logger", "cowrie.python.logfile.logger", "cowrie"]
        env = {"PATH": os.environ["PATH"], "HOME": str(self.work), "PYTHONDONTWRITEBYTECODE": "1"}
        return Process(argv, self.work / "log", env=env, cwd=self.work)


class Plain(Target):
    """The tuned asyncssh server of `bench/plain_server.py`: local bash, no recording, no box."""

    name = "plain"

    def _launch(self) -> Process:
        home = self.work / "home"
        shutil.copytree(HOME, home)
        argv = [sys.executable, "-m", "bench.plain_server", str(self.port), str(home)]
        return Process(argv, self.work / "log", cwd=PROJECT)


class Hermes(Target):
    """Hermes with its defaults: recording on, journal on; only limits that the load itself would hit are raised."""

    engine: str
    pooled = True
    patience = 900.0  # The first start builds the target image.

    def __init__(self, work: Path, *, pool: int = 10) -> None:
        super().__init__(work, pool=pool)
        self.data = CACHE / self.name

    def environment(self) -> dict[str, str]:
        """Settings of this run, as environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HERMES_")}
        return kept | {
            "HERMES_DATA_DIR": str(self.data),
            "HERMES_SERVER__ADDRESSES": '["127.0.0.1"]',
            "HERMES_SERVER__PORT": str(self.port),
            "HERMES_SERVER__MAX_STARTUPS": "1000",
            "HERMES_SERVER__MAX_CONNECTIONS": "2000",
            "HERMES_SERVER__MAX_SESSIONS": "2000",
            "HERMES_CONTAINER_POOL__ENGINE": self.engine,
            "HERMES_CONTAINER_POOL__SIZE": str(self.pool),
            "HERMES_CONTAINER_POOL__MAX_ACTIVE": "1000",
        }

    def _launch(self) -> Process:
        hermes = PROJECT / ".venv" / "bin" / "hermes"
        if not hermes.exists():
            raise Unavailable("no .venv/bin/hermes: run scripts/setup")
        self._clear()
        images = self.data / "images"
        for source in (INSTALLED_IMAGES, *sorted(CACHE.glob("*/images"))):
            if source.is_dir() and not images.exists():
                run("cp", "-a", "--reflink=auto", str(source), str(images))
        return Process([str(hermes), "up"], self.work / "log", env=self.environment(), cwd=self.work)

    def _clear(self) -> None:
        """Have a data directory with nothing in it but images."""
        self.data.mkdir(parents=True, exist_ok=True)
        for child in self.data.iterdir():
            if child.name != "images":
                remove(child)

    def stop(self) -> None:
        super().stop()
        self._clear()

    def processes(self) -> set[int]:
        return procs.tree(Target.roots(self)).difference(*self.boxes())

    def front(self) -> set[int]:
        # What parses an attacker's bytes runs without privilege; nothing else of Hermes outside the boxes does.
        return {pid for pid in self.processes() if procs.user_of(pid) not in (0, None)}

    def boxes(self) -> list[set[int]]:
        return procs.boxes(self.roots())

    def warm(self, count: int, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while (standing := len(self.boxes())) < count:
            if time.monotonic() > deadline:
                raise Unavailable(f"{standing} of {count} boxes warm after {timeout:.0f} s")
            time.sleep(0.5)

    def tidy(self) -> None:
        for session in (self.data / "recordings").glob("*/*"):
            remove(session)


class HermesLocal(Hermes):
    """Hermes with the local engine."""

    name = "hermes-local"
    engine = "local"


class HermesDocker(Hermes):
    """Hermes with the docker engine; a private dockerd is started where none answers."""

    name = "hermes-docker"
    engine = "docker"

    def __init__(self, work: Path, *, pool: int = 10) -> None:
        super().__init__(work, pool=pool)
        self._dockerd: Process | None = None
        self._socket = Path("/var/run/docker.sock")

    def _launch(self) -> Process:
        if not self._docker_answers():
            if shutil.which("dockerd") is None:
                raise Unavailable("no dockerd: apt-get install docker.io")
            docker = self.work / "docker"
            docker.mkdir()
            self._socket = docker / "docker.sock"
            folders = ["--data-root", str(docker / "data"), "--exec-root", str(docker / "exec"), "--pidfile", str(docker / "pid")]
            argv = ["dockerd", *folders, "--iptables=false", "--ip6tables=false", "--bridge=none", "-H", f"unix://{self._socket}"]
            self._dockerd = Process(argv, docker / "log")
            self._dockerd.wait_until(self._docker_answers, 60)
        return super()._launch()

    def _docker_answers(self) -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(5)
                client.connect(str(self._socket))
                client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in client.recv(64)
        except OSError:
            return False

    def environment(self) -> dict[str, str]:
        return super().environment() | {"HERMES_CONTAINER_POOL__DOCKER__HOST": f"unix://{self._socket}"}

    def roots(self) -> list[int]:
        return super().roots() + ([self._dockerd.pid] if self._dockerd is not None else [])

    def stop(self) -> None:
        super().stop()
        if self._dockerd is not None:
            self._dockerd.stop()
            self._dockerd = None


TARGETS: dict[str, type[Target]] = {target.name: target for target in (Sshd, Cowrie, Plain, HermesLocal, HermesDocker)}


def add_user() -> None:
    """Make the throw-away user whom sshd lets in and Cowrie runs as; its password is set, and locked again, by `Sshd`."""
    remove_user()
    run("useradd", "--system", "--create-home", "--skel", str(HOME), "--shell", "/bin/bash", USER)


def remove_user() -> None:
    """Remove the throw-away user, its home and what it still runs, if it is there."""
    try:
        run("getent", "passwd", USER)
    except Unavailable:
        return
    run("userdel", "--force", "--remove", USER)
