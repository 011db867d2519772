"""`hermes geo`, run as a program: by root it gives up root's power before it reads or writes anything."""

import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.test_privileges import WATCHED
from tests.unit.geo.registry import DATA, Registry, package, registry


@pytest.fixture
def served() -> Iterator[Registry]:
    with registry() as one:
        one.publish("country-mmdb", package("country"))
        yield one


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A data directory to be, which a user without power can reach."""
    for directory in (tmp_path, *tmp_path.parents):
        if not directory.stat().st_mode & 0o001:
            directory.chmod(directory.stat().st_mode | 0o011)
    return tmp_path / "data"


def run(place: Path, *arguments: str, url: str = "http://127.0.0.1:1", **options: str) -> "subprocess.CompletedProcess[bytes]":
    settings = {
        "HERMES_DATA_DIR": str(place), "HERMES_GEO__REGISTRY": url, "HERMES_GEO__COUNTRY_PACKAGE": "country-mmdb",
        "HERMES_GEO__ASN_PACKAGE": "asn-mmdb", "HERMES_SENSOR__USER": "nobody", **options,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", WATCHED, "geo", *arguments], env={**os.environ, **settings}, cwd="/", capture_output=True,
        timeout=60, check=True,
    )  # fmt: skip


def facts(done: "subprocess.CompletedProcess[bytes]") -> dict[str, object]:
    found: dict[str, object] = json.loads(done.stderr.splitlines()[-1])
    return found


def test_one_that_comes_and_one_that_does_not(served: Registry, place: Path) -> None:
    done = run(place, "update", url=served.url)
    assert facts(done)["code"] == 1
    assert b"country  country-mmdb 1.0.0, of 20" in done.stdout
    assert b"licence CC-BY-4.0, https://example.org/geo" in done.stdout
    assert f"attribution and terms: {place}/geo/country.txt".encode() in done.stdout
    assert b"hermes: geo asn: asn-mmdb: the registry has no such package" in done.stderr
    served.publish("asn-mmdb", package("asn"))
    done = run(place, "update", "--json", url=served.url)
    assert facts(done)["code"] == 0
    outcome = json.loads(done.stdout)
    assert (outcome["country"]["updated"], outcome["asn"]["updated"]) == (False, True)


def test_an_address_is_shown_with_whom_it_is_known_from(served: Registry, place: Path) -> None:
    served.publish("asn-mmdb", package("asn"))
    run(place, "update", url=served.url)
    done = run(place, "show", "1.1.1.1")
    first, *rest = done.stdout.decode().splitlines()
    assert first == "1.1.1.1  country AU  system AS13335 Cloudflare \\x1b[31m"
    assert "country: country-mmdb, licence CC-BY-4.0, https://example.org/geo" in rest
    done = run(place, "show", "2606:4700::1", "--json")
    databases = json.loads(done.stdout)["databases"]
    assert (databases["country"]["country"], databases["asn"]["asn"]) == ("AU", 13335)
    assert b"country unknown  system unknown" in run(place, "show", "5.5.5.5").stdout
    done = run(place, "show")
    assert b"country  test country, built 20" in done.stdout
    assert b"asn-mmdb 1.0.0, licence CC-BY-4.0" in done.stdout


def test_databases_that_are_named(place: Path) -> None:
    copy = place.with_name("mine.mmdb")
    copy.write_bytes((DATA / "ipinfo.mmdb").read_bytes())
    copy.chmod(0o644)
    done = run(place, "show", "1.1.1.1", HERMES_GEO__COUNTRY=str(copy))
    assert b"1.1.1.1  country AU  system unknown" in done.stdout
    assert f"hermes: geo asn: {place}/geo/asn.mmdb cannot be read".encode() in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [(["show"], 1, b"there is no database"), (["show", "nonsense"], 2, b"'nonsense' is no IP address"),
     (["update"], 1, b"the registry cannot be reached")],
)  # fmt: skip
def test_what_cannot_be_done_is_told(arguments: list[str], code: int, says: bytes, place: Path) -> None:
    done = run(place, *arguments)
    assert facts(done)["code"] == code
    assert says in done.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has power to give up")
def test_root_becomes_the_sensors_user(served: Registry, place: Path) -> None:
    account = pwd.getpwnam("nobody")
    for arguments in (["update"], ["show", "1.1.1.1"]):
        found = facts(run(place, *arguments, url=served.url))
        assert (found["uids"], found["groups"], found["late"]) == ([str(account.pw_uid)] * 4, [], [])
    assert {it.stat().st_uid for it in (place / "geo").iterdir()} == {account.pw_uid}
    assert place.stat().st_uid == 0
