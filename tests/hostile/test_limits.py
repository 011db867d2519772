"""A whole sensor under a flood, by its defaults: one network takes all it can get, and nobody else goes without."""

import contextlib
import http.client
import re
import socket
import subprocess
import threading

import pytest

from tests.sensors import CLIENT, PATIENCE, Sensor, Start, free_port, wait_until

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FLOODERS = 16


def log_in(sensor: Sensor, source: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a command over ssh from this address of ours."""
    command = ["sshpass", "-p", "root", "ssh", *CLIENT, "-b", source, "-p", str(sensor.port), "root@127.0.0.1", "echo fine"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE, check=False)


def counted(port: int, name: str) -> float:
    """The sum of a metric's samples."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE))


def test_a_flood_from_one_network_leaves_the_others_served(start: Start) -> None:
    port = free_port()
    sensor = start(
        server__exempt="[]", server__max_startups="10:30:100", server__limit_interval="1", metrics__address=f"127.0.0.1:{port}"
    )
    stop = threading.Event()
    held: list[socket.socket] = []
    turned_away = [0] * FLOODERS

    def flood(number: int) -> None:
        while not stop.is_set():
            sock = socket.socket()
            sock.settimeout(PATIENCE)
            sock.bind((f"127.0.66.{number + 1}", 0))
            greeting = b""
            with contextlib.suppress(OSError):
                sock.connect(("127.0.0.1", sensor.port))
                greeting = sock.recv(64)
            if greeting.startswith(b"SSH-"):
                held.append(sock)
            else:
                turned_away[number] += greeting == b"Exceeded MaxStartups\r\n"
                sock.close()

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(FLOODERS)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: sum(turned_away) > 100)
        for number in range(5):
            assert log_in(sensor, f"127.0.{number + 1}.1").stdout == b"fine\n"
        refused = log_in(sensor, "127.0.66.250")
        assert (refused.returncode, refused.stdout) == (255, b"")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        for sock in held:
            sock.close()
    told = sum(turned_away) + 1
    wait_until(lambda: counted(port, "hermes_connections_refused_total") >= told)
    assert counted(port, "hermes_limit_reached_total") >= told
    assert counted(port, "hermes_sessions_total") == 5
    wait_until(lambda: counted(port, "hermes_connections_open") == 0)
    assert log_in(sensor, "127.0.66.1").stdout == b"fine\n"
    assert sensor.stop() == 0
    assert "Traceback" not in sensor.said()
