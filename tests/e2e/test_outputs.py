"""A whole sensor whose outputs, confined and without power, send on what attackers do, though they are killed and cut off."""

import asyncio
import hashlib
import hmac
import json
import os
import pwd
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes.config import Settings
from hermes.outputs.cowrie import Cowrie
from tests.sensors import Start, wait_until
from tests.unit.outputs import test_syslog, test_webhook
from tests.unit.outputs.test_cowrie import consumers
from tests.unit.outputs.test_postgres import Server, server
from tests.unit.outputs.world import lines, records

__all__ = ["consumers", "server"]

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that the outputs may write in."""
    with tempfile.TemporaryDirectory(prefix="hermes-outputs-", dir="/var/tmp") as name:
        account = pwd.getpwnam("hermes")
        os.chown(name, account.pw_uid, account.pw_gid)
        yield Path(name)


class Receivers:
    """A webhook's and a syslog's receiver, on a thread."""

    def __init__(self) -> None:
        self.hook = test_webhook.Receiver([b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", test_webhook.OK])
        self.syslog = test_syslog.Receiver()
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self.stop = asyncio.Event()
        self.ready = threading.Event()
        self.thread = threading.Thread(target=self.loop.run_until_complete, args=(self.serve(),))

    async def serve(self) -> None:
        hook = await asyncio.start_server(self.hook.serve, "127.0.0.1", 0)
        syslog = await asyncio.start_server(self.syslog.serve, "127.0.0.1", 0)
        self.hook.url = f"http://localhost:{hook.sockets[0].getsockname()[1]}/geheim"
        self.syslog.address = f"localhost:{syslog.sockets[0].getsockname()[1]}"
        self.ready.set()
        await self.stop.wait()
        hook.close()
        syslog.close()
        for writer in self.syslog.writers:
            writer.transport.abort()
        waiting = [it for it in (*self.hook.open, *self.syslog.tasks) if it is not None]
        for it in waiting:
            it.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def __enter__(self) -> "Receivers":
        self.thread.start()
        assert self.ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(60)
        self.loop.close()


def test_everything_goes_everywhere_whatever_is_killed(
    start: Start, place: Path, server: Server, consumers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_KEY", "schluessel")
    (place / "hook.url").write_text("")
    with Receivers() as receivers:
        (place / "hook.url").write_text(receivers.hook.url + "\n")
        (place / "hook.url").chmod(0o600)
        os.chown(place / "hook.url", 0, 0)
        common: dict[str, Any] = {"start": "beginning"}
        outputs = [
            {"type": "jsonl", "name": "lines", "path": f"{place}/events.jsonl", **common},
            {"type": "cowrie", "name": "cowrie", "path": f"{place}/cowrie.json", **common},
            {
                "type": "webhook",
                "name": "hook",
                "url": f"file:{place}/hook.url",
                "secret": "env:HOOK_KEY",
                "timeout": 20,
                **common,
            },
            {"type": "syslog", "name": "syslog", "address": receivers.syslog.address, "max_bytes": 65000, **common},
            {"type": "postgresql", "name": "db", "url": server.url, "timeout": 10, **common},
            {"type": "webhook", "name": "lacking", "url": "env:NOT_THERE", **common},
        ]
        token = {"name": "backup", "output": "lines", "texts": ["AKIAHONEY"]}
        sensor = start(outputs=json.dumps(outputs), alerts__honeytokens=json.dumps([token]))
        assert sensor.ssh("echo AKIAHONEY; uname").stdout == b"AKIAHONEY\nLinux\n"
        os.kill(wait_until(lambda: sensor.pids().get("outputs")), signal.SIGKILL)
        assert sensor.ssh("cat > /tmp/evil; chmod +x /tmp/evil", stdin=b"#!/bin/sh\n").returncode == 0
        server.stop()
        assert sensor.ssh("true", password="wrong").returncode != 0
        server.start()
        sensor.sessions(ended=2)

        def standing() -> dict[str, Any]:
            return {it["name"]: it for it in sensor.json("outputs", "list")}

        def all_there() -> bool:
            return all(it["lag"] == 0 and it["failing_since"] is None for name, it in standing().items() if name != "lacking")

        wait_until(all_there)
        assert "NOT_THERE" in standing()["lacking"]["last_error"]
        assert standing()["lacking"]["id"] == 0
        assert sensor.stop() == 0
        said = sensor.said()
        for word in ("Traceback", "imported too late", "geheim", "schluessel"):
            assert word not in said
        headers, body = receivers.hook.requests[-1]
        signed = hmac.new(b"schluessel", headers["x-hermes-timestamp"].encode() + b"." + body, hashlib.sha256).hexdigest()
        assert headers["x-hermes-signature"] == f"sha256={signed}"
        journal = records(sensor.data_dir / "journal" / "journal.db")
        known = {it["id"]: it["event_id"] for it in lines(place / "events.jsonl") if it["event"] != "alert.raised"}
        upto = max(known)
        expected = [it.id for it in journal if it.id <= upto]
        assert sorted(known) == expected
        alerts = {it["event_id"]: it["cause"]["event"] for it in lines(place / "events.jsonl") if it["event"] == "alert.raised"}
        assert list(alerts.values()) == ["channel.started"]  # what follows from the same address is suppressed
        for ids in (set(receivers.hook.ids), set(receivers.syslog.ids)):
            assert set(range(1, min(upto, max(ids)) + 1)) & set(expected) <= ids
        rows = [it for (it,) in server.ask("SELECT id FROM hermes_events ORDER BY id")]
        assert rows == [it.id for it in journal if it.id <= rows[-1]]
        _as_cowrie(place / "cowrie.json", sensor.data_dir, consumers)


def _as_cowrie(log: Path, data_dir: Path, consumers: Path) -> None:
    """The log that was written across a kill is the one that would be written at once, and a consumer reads it."""
    settings = Settings.model_validate({"data_dir": data_dir})
    journal = records(settings.journal_path)
    whole = Cowrie(
        sensor="hermes", journal=settings.journal_path, recordings=settings.recordings_dir, artifact=lambda it: data_dir / it
    ).lines(journal)
    once = list({it["event_id"]: it for it in lines(log)}.values())
    wanted = [json.loads(it) for it in whole.splitlines()]
    assert [(it["eventid"], it["session"], it["event_id"]) for it in once] == [
        (it["eventid"], it["session"], it["event_id"]) for it in wanted[: len(once)]
    ]
    script = "import json,sys; from honeypot_mitre.parsing import parse_sessions; "
    script += "print(json.dumps([it.to_dict() for it in parse_sessions(sys.argv[1])]))"
    done = subprocess.run([consumers, "-c", script, log], capture_output=True, text=True, check=True, timeout=60)
    sessions = json.loads(done.stdout)
    assert [it["commands"] for it in sessions if it["commands"]] == [
        ["echo AKIAHONEY; uname"], ["cat > /tmp/evil; chmod +x /tmp/evil"]
    ]  # fmt: skip
    assert {it["src_ip"] for it in sessions} == {"127.0.0.1"}
    assert any(it["downloads"] for it in sessions)
    assert [(it["username"], it["password"], it["success"]) for it in sessions[0]["login_attempts"]][-1] == ("root", "root", True)
