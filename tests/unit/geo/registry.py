"""A small npm registry on the loopback, with packages that a test makes."""

import base64
import gzip
import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

DATA = Path(__file__).parent / "data"


def tarball(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue())


def package(source: str) -> bytes:
    """A package as @ip-location-db's are."""
    database = (DATA / f"{source}.mmdb").read_bytes()
    return tarball({
        "package.json": b"{}", "README.md": b"# by example.org\n", "SOME_LICENSE": b"be kind\n", "x-ipv4.mmdb": b"not this",
        "x-ipv6.mmdb": b"not this", "x.mmdb": database,
    })  # fmt: skip


class Registry:
    """What is served: by path, status and body; `asked` lists what was asked for."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []

    def publish(self, name: str, packed: bytes, *, version: str = "1.0.0", **changed: object) -> None:
        """Make a package the newest of its name; `changed`: fields of its description that are something else."""
        path = f"/tarballs/{name.rpartition('/')[2]}-{version}.tgz"
        self.answers[path] = (200, packed)
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(packed).digest()).decode()
        described = {
            "name": name, "version": version, "license": "CC-BY-4.0", "homepage": "https://example.org/geo",
            "dist": {"tarball": self.url + path, "integrity": integrity}, **changed,
        }  # fmt: skip
        self.answers[f"/{name.replace('/', '%2F')}/latest"] = (200, json.dumps(described).encode())


@contextmanager
def registry() -> Iterator[Registry]:
    """Serve one for as long as the block takes."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            if (target := served.redirects.get(self.path)) is not None:
                self.send_response(302)
                self.send_header("Location", target)
                self.end_headers()
                return
            status, body = served.answers.get(self.path, (404, b"{}"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Registry(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
