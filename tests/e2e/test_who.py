"""Who comes and where they want to go, in a whole sensor, whose front is confined."""

import asyncio
import json
import shutil
import signal
import socket
import sqlite3
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from hermes import events
from tests.sensors import PATIENCE, Sensor, Start, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

DATA = Path(__file__).parent.parent / "unit" / "geo" / "data"


def stated(sensor: Sensor, kind: type[events.Event]) -> list[dict[str, Any]]:
    """What the journal has of one kind."""
    db = sqlite3.connect(f"file:{sensor.data_dir}/journal/journal.db?mode=ro", uri=True)
    try:
        rows = db.execute("SELECT body FROM events WHERE event = ? ORDER BY id", (kind.tag(),)).fetchall()
    finally:
        db.close()
    return [json.loads(body) for (body,) in rows]


def dial(sensor: Sensor, source: str) -> socket.socket:
    """Connect as if from another address."""
    sock = socket.create_connection(("127.0.0.1", sensor.port), timeout=PATIENCE)
    sock.sendall(f"PROXY TCP4 {source} 198.51.100.1 4711 22\r\n".encode())
    return sock


def put(sensor: Sensor, source: str, name: str) -> None:
    """Replace a database as `hermes geo update` does."""
    place = sensor.data_dir / "geo"
    shutil.copy(DATA / source, place / "new")
    shutil.chown(place / "new", "hermes", "hermes")
    (place / "new").replace(place / name)


async def mail(sock: socket.socket) -> bytes:
    """Send mail through the sensor; return all that the server said."""
    async with asyncssh.connect(
        sock=sock, username="root", password="root", known_hosts=None, client_keys=None, config=None
    ) as ssh:
        reader, writer = await ssh.open_connection("mx.example.org", 25)
        writer.write(b"EHLO me\r\nAUTH PLAIN AHUAcA==\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
        async with asyncio.timeout(PATIENCE):
            said: bytes = await reader.read()
        return said


def test_origins_and_forwards_of_a_confined_front(start: Start, sensors_dir: Path) -> None:
    named = sensors_dir / "mine.mmdb"
    shutil.copy(DATA / "country.mmdb", named)
    sensor = start(server__proxy_protocol="true", geo__country=str(named), container_pool__size="1")
    sock = dial(sensor, "1.1.1.1")
    assert b"queued as" in asyncio.run(mail(sock))
    (origin,) = wait_until(lambda: stated(sensor, events.ConnectionOrigin))
    assert (origin["country"], origin["asn"]) == ("AU", None)
    (closed,) = wait_until(lambda: stated(sensor, events.ForwardClosed))
    assert closed["protocol"] == "smtp"
    (login,) = stated(sensor, events.ForwardLogin)
    assert (login["username"], login["password"]) == ("u", "p")
    assert any("hello\r\n.\r\n" in it["data"] for it in stated(sensor, events.ForwardData))
    assert not stated(sensor, events.SessionContainer)

    put(sensor, "asn.mmdb", "asn.mmdb")
    sensor.process.send_signal(signal.SIGHUP)
    wait_until(lambda: stated(sensor, events.SensorReloaded))
    dial(sensor, "9.9.9.9").close()
    origin = wait_until(lambda: stated(sensor, events.ConnectionOrigin)[1:])[0]
    assert (origin["country"], origin["asn"], origin["organization"]) == (None, 19281, "Quad9")

    named.unlink()  # what it is now, the front may not read any more; what it was, it still knows
    shutil.copy(DATA / "maxmind.mmdb", named)
    sensor.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(stated(sensor, events.SensorReloaded)) == 2)
    dial(sensor, "1.1.1.1").close()
    origin = wait_until(lambda: stated(sensor, events.ConnectionOrigin)[2:])[0]
    assert (origin["country"], origin["asn"]) == ("AU", 13335)
    assert sensor.stop() == 0
    assert "Traceback" not in sensor.said()
    assert "imported too late" not in sensor.said()
