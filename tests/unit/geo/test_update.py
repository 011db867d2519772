"""Databases from a registry: only what is whole, and what it says it is, replaces what was there."""

import gzip
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hermes.config.geo import GeoConfig
from hermes.errors import GeoError
from hermes.events import ConnectionOrigin
from hermes.geo import update as updating
from hermes.geo.databases import Database, Kind
from hermes.geo.update import client, installed, update
from tests.unit.geo.registry import DATA, Registry, package, registry, tarball

NAME = "@example/country-mmdb"


@pytest.fixture
def served() -> Iterator[Registry]:
    with registry() as one:
        one.publish(NAME, package("country"))
        yield one


def bring(served: Registry, directory: Path, kind: Kind = "country", **options: Any) -> tuple[updating.Installed, bool]:
    config = GeoConfig(registry=served.url, country_package=NAME, asn_package="asn-mmdb")
    with client(config) as http:
        return update(config, directory, kind, http, **options)


def test_a_database_comes_with_its_licence(served: Registry, tmp_path: Path) -> None:
    made, fresh = bring(served, tmp_path)
    assert fresh
    assert (made.package, made.version, made.licence, made.homepage) == (NAME, "1.0.0", "CC-BY-4.0", "https://example.org/geo")
    assert (tmp_path / "country.mmdb").read_bytes() == (DATA / "country.mmdb").read_bytes()
    text = (tmp_path / "country.txt").read_text()
    assert text.startswith(f"{NAME} 1.0.0, licence CC-BY-4.0\nhttps://example.org/geo\n")
    assert "# by example.org" in text
    assert "be kind" in text
    assert installed(tmp_path, "country") == made
    assert sorted(it.name for it in tmp_path.iterdir()) == ["country.json", "country.mmdb", "country.txt"]


def test_what_is_up_to_date_is_not_fetched_again(served: Registry, tmp_path: Path) -> None:
    made, _ = bring(served, tmp_path)
    served.asked.clear()
    assert bring(served, tmp_path) == (made, False)
    assert served.asked == [f"/{NAME.replace('/', '%2F')}/latest"]
    assert bring(served, tmp_path, force=True)[1]
    (tmp_path / "country.mmdb").unlink()
    assert bring(served, tmp_path)[1]
    served.publish(NAME, package("maxmind"), version="1.0.1")
    made, fresh = bring(served, tmp_path)
    assert (made.version, fresh) == ("1.0.1", True)
    assert Database(tmp_path / "country.mmdb").facts.type == "GeoLite2-Country"


def bombs() -> dict[str, tuple[bytes, dict[str, object]]]:
    """Packages that must replace nothing: what is served, and what is said of it."""
    good = (DATA / "country.mmdb").read_bytes()
    dist = {"tarball": "http://127.0.0.1:1/x.tgz"}
    return {
        "(sha512)": (package("country"), {"dist": {"tarball": "URL", "integrity": "sha512-" + "A" * 86 + "=="}}),
        "states no sha512": (package("country"), {"dist": {"tarball": "URL", "integrity": "sha1-2jmj7l5rSw0yVb/vlWAYkK/YBwk="}}),
        "makes no sense": (package("country"), {"dist": dist}),
        "makes no sense: the version": (package("country"), {"version": "../../etc"}),
        "the package is damaged: Not a gzipped": (b"no gzip at all", {}),
        "the package is damaged: ": (gzip.compress(b"x" * 2000), {}),
        "cannot be reached": (package("country"), {"dist": {**dist, "integrity": "sha512-" + "A" * 86 + "=="}}),
        "no database of both": (tarball({"x-ipv4.mmdb": good}), {}),
        "more than one database": (tarball({"x.mmdb": good, "y.mmdb": good}), {}),
        "no mmdb database": (tarball({"x.mmdb": b"hello"}), {}),
        "does not tell the country": (package("asn"), {}),
        "larger than 20000 bytes": (tarball({"x.mmdb": good, "y.bin": os.urandom(30_000)}), {}),
        "what is in it is larger than 60000 bytes": (tarball({"x.mmdb": good, "zeros": bytes(200_000)}), {}),
        "too many files": (tarball({f"{number}.txt": b"" for number in range(30)}), {}),
    }


@pytest.mark.parametrize("reason", bombs())
def test_what_is_wrong_replaces_nothing(reason: str, served: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bring(served, tmp_path)
    before = {it.name: it.read_bytes() for it in tmp_path.iterdir()}
    monkeypatch.setattr(updating, "MAX_TARBALL", 20_000)
    monkeypatch.setattr(updating, "MAX_UNPACKED", 60_000)
    monkeypatch.setattr(updating, "MAX_FILES", 25)
    packed, changed = bombs()[reason]
    if isinstance(dist := changed.get("dist"), dict) and dist["tarball"] == "URL":
        dist["tarball"] = f"{served.url}/tarballs/country-mmdb-2.0.0.tgz"
    served.publish(NAME, packed, **{"version": "2.0.0", **changed})  # type: ignore[arg-type]
    with pytest.raises(GeoError) as caught:
        bring(served, tmp_path)
    assert reason in str(caught.value)
    assert {it.name: it.read_bytes() for it in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("status", "reason"), [(404, "has no such package"), (500, "answers 500"), (200, "makes no sense")])
def test_what_the_registry_will_not_give(status: int, reason: str, served: Registry, tmp_path: Path) -> None:
    served.answers["/asn-mmdb/latest"] = (status, b"[]")
    with pytest.raises(GeoError, match=reason):
        bring(served, tmp_path, "asn")


def test_a_registry_that_is_not_there(tmp_path: Path) -> None:
    config = GeoConfig(registry="http://127.0.0.1:1")
    with client(config) as http, pytest.raises(GeoError, match="cannot be reached"):
        update(config, tmp_path, "country", http)


def test_an_answer_without_end_is_cut(served: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updating, "MAX_MANIFEST", 1000)
    served.answers["/asn-mmdb/latest"] = (200, b"x" * 5000)
    with pytest.raises(GeoError, match="larger than 1000 bytes"):
        bring(served, tmp_path, "asn")


def test_redirects_are_followed_but_never_away_from_tls(served: Registry, tmp_path: Path) -> None:
    with registry() as other:
        other.publish(NAME, package("country"))
        served.redirects["/asn-mmdb/latest"] = f"{other.url}/{NAME.replace('/', '%2F')}/latest"
        with pytest.raises(GeoError, match="does not tell the ASN"):
            bring(served, tmp_path, "asn")
    strict = GeoConfig()
    with client(strict) as http, pytest.raises(GeoError, match=r"http://127\.0\.0\.1.* is not https"):
        http.get(f"{served.url}/x")


def test_the_working_directory_cannot_be_written(served: Registry, tmp_path: Path) -> None:
    with pytest.raises(GeoError, match="No such file or directory"):
        bring(served, tmp_path / "none")


def test_what_a_killed_update_left_goes_with_a_later_one(served: Registry, tmp_path: Path) -> None:
    for name, age in ((".new-old", 7200), (".new-now", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "package.tgz").write_bytes(b"x")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    bring(served, tmp_path)
    assert (tmp_path / ".new-now").exists()
    assert not (tmp_path / ".new-old").exists()


def test_no_description_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert installed(tmp_path, "asn") is None
    (tmp_path / "asn.json").write_text("{nonsense")
    assert installed(tmp_path, "asn") is None


def test_the_digest_is_of_what_came(served: Registry, tmp_path: Path) -> None:
    made, _ = bring(served, tmp_path)
    assert made.integrity.startswith("sha512-")
    assert Database(tmp_path / "country.mmdb").origin("8.8.8.8") == ConnectionOrigin(country="US")
