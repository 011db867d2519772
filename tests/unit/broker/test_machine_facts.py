"""The machine's facts, asked of the real one."""

import contextlib
import errno
import fcntl
import http.server
import json
import os
import socket
import socketserver
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from hermes.broker.machine_facts import Machine


def test_a_port_is_free_taken_or_nowhere() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert Machine().listen_error("127.0.0.1", port) == errno.EADDRINUSE
    assert Machine().listen_error("127.0.0.1", port) == 0
    assert Machine().listen_error("::1", 0) in (0, errno.EADDRNOTAVAIL)
    assert Machine().listen_error("192.0.2.1", 2222) == errno.EADDRNOTAVAIL
    assert Machine().listen_error("no.such.name.invalid", 2222) == errno.EADDRNOTAVAIL


def test_a_running_hermes_is_seen_by_its_lock(tmp_path: Path) -> None:
    assert not Machine().is_running(tmp_path)
    with (tmp_path / "lock").open("w") as held:
        assert not Machine().is_running(tmp_path)
        fcntl.flock(held, fcntl.LOCK_EX)
        assert Machine().is_running(tmp_path)


def test_commands_files_and_libraries(tmp_path: Path) -> None:
    real = Machine()
    assert real.run("sh", "-c", "echo one; echo two >&2; exit 3") == (3, "two")
    assert real.run("/nonexistent/program")[0] == -1
    assert real.which("sh")
    assert real.which("no-such-program") is None
    assert real.has_library("libc.so.6")
    assert not real.has_library("libnosuch.so.9")
    assert real.has_user("root")
    assert not real.has_user("nosuchuser")
    assert real.read(str(tmp_path / "none")) is None
    assert real.stat(tmp_path / "none") is None
    assert stat.S_ISDIR(cast(os.stat_result, real.stat(tmp_path)).st_mode)
    assert cast(int, real.free_bytes(tmp_path)) > 0
    assert real.free_bytes(tmp_path / "none") is None
    assert "memory" in real.controllers()
    assert real.open_files() != 0
    assert real.landlock() in range(100)
    assert real.kernel() == os.uname().release


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextlib.contextmanager
def answering(path: Path, status: int, body: bytes) -> Iterator[None]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

        def address_string(self) -> str:
            return "unix"

    with _Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "right"),
    [
        (200, json.dumps({"ApiVersion": "1.41"}).encode(), lambda said: said == {"ApiVersion": "1.41"}),
        (500, b"{}", lambda said: said == "it answers with status 500"),
        (200, b"<html>", lambda said: isinstance(said, str)),
    ],
)
def test_a_docker_daemon_is_asked(tmp_path: Path, status: int, body: bytes, right: Callable[[object], bool]) -> None:
    path = tmp_path / "docker.sock"
    with answering(path, status, body):
        assert right(Machine().docker_version(f"unix://{path}"))
    assert isinstance(Machine().docker_version(f"unix://{tmp_path}/none.sock"), str)


def test_a_docker_host_without_a_port_that_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert Machine().docker_version(f"tcp://127.0.0.1:{port}") == "Connection refused"
