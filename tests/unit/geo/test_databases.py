"""Databases of countries and systems: small ones that were made with mmdb_writer (PyPI), of each form there is."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hermes.config import Settings
from hermes.errors import GeoError
from hermes.events import ConnectionOrigin
from hermes.geo import databases
from hermes.geo.databases import Database, Databases, Kind

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("name", "address", "origin"),
    [
        ("country", "1.1.1.1", ConnectionOrigin(country="AU")),
        ("country", "2606:4700::1111", ConnectionOrigin(country="AU")),
        ("country", "9.9.9.9", None),
        ("asn", "9.9.9.9", ConnectionOrigin(asn=19281, organization="Quad9")),
        ("asn", "8.8.8.8", None),
        ("maxmind", "1.1.1.1", ConnectionOrigin(country="AU")),
        ("maxmind", "8.8.8.8", ConnectionOrigin(country="US")),
        ("ipinfo", "1.1.1.1", ConnectionOrigin(country="AU", asn=13335, organization="Cloudflare")),
        ("ipinfo", "8.8.8.8", ConnectionOrigin(country="US")),
        ("ipinfo", "2606:4700::1111", None),
        ("other", "1.1.1.1", None),
    ],
)
def test_each_form_is_understood(name: str, address: str, origin: ConnectionOrigin | None) -> None:
    assert Database(DATA / f"{name}.mmdb").origin(address) == origin


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("country", {"country"}),
        ("asn", {"asn"}),
        ("maxmind", {"country"}),
        ("ipinfo", {"country", "asn"}),
        ("other", set()),
    ],
)
def test_it_is_known_what_a_database_tells(name: str, kinds: set[str]) -> None:
    database = Database(DATA / f"{name}.mmdb")
    for kind in databases.KINDS:
        if kind in kinds:
            database.require(kind)
        else:
            with pytest.raises(GeoError, match="does not tell"):
                database.require(kind)


def test_what_is_no_database_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(GeoError, match="cannot be read: No such file"):
        Database(tmp_path / "none.mmdb")
    os.mkfifo(tmp_path / "fifo")
    for place in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(GeoError, match="is no regular file"):
            Database(place)
    for content in (b"", b"hello", b"\xab\xcd\xefMaxMind.com", (DATA / "country.mmdb").read_bytes()[:-40]):
        (tmp_path / "bad.mmdb").write_bytes(content)
        with pytest.raises(GeoError, match="no mmdb database, or damaged"):
            Database(tmp_path / "bad.mmdb")
    monkeypatch.setattr(databases, "MAX_DATABASE", 100)
    with pytest.raises(GeoError, match="larger than 100 bytes"):
        Database(DATA / "country.mmdb")


@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=20))
def test_damage_raises_nothing_but_that_it_is_damaged(changes: list[tuple[float, int]]) -> None:
    data = bytearray((DATA / "asn.mmdb").read_bytes())
    for where, value in changes:
        data[int(where * len(data))] = value
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            database = Database(Path(file.name))
            for address in ("1.1.1.1", "9.9.9.9", "2606:4700::1", "255.255.255.255"):
                database.origin(address)
            database.require("asn")
        except GeoError:
            pass


def sensor(tmp_path: Path, **geo: str) -> Databases:
    return Databases(Settings.model_validate({"data_dir": str(tmp_path), "geo": geo}))


def put(tmp_path: Path, source: str, kind: Kind) -> None:
    """Replace a database as an update does."""
    (tmp_path / "geo").mkdir(exist_ok=True)
    shutil.copy(DATA / f"{source}.mmdb", tmp_path / "new")
    (tmp_path / "new").replace(tmp_path / "geo" / f"{kind}.mmdb")


def test_both_are_asked_and_private_addresses_are_nowhere(tmp_path: Path) -> None:
    put(tmp_path, "country", "country")
    put(tmp_path, "asn", "asn")
    geo = sensor(tmp_path)
    assert geo.origin("1.1.1.1") is None  # not open yet
    geo.open()
    assert geo.origin("1.1.1.1") == ConnectionOrigin(country="AU", asn=13335, organization="Cloudflare \x1b[31m")
    assert geo.origin("8.8.8.8") == ConnectionOrigin(country="US")
    for address in ("10.0.0.1", "127.0.0.1", "::1", "5.5.5.5", "", "nonsense"):
        assert geo.origin(address) is None


def test_without_any_nothing_is_said(tmp_path: Path) -> None:
    geo = sensor(tmp_path)
    with capture_logs() as logs:
        geo.open()
    assert logs == []
    assert geo.origin("1.1.1.1") is None


def test_one_that_is_named_and_cannot_be_used_is_told_and_the_other_used(tmp_path: Path) -> None:
    geo = sensor(tmp_path, country=str(tmp_path / "gone.mmdb"), asn=str(DATA / "ipinfo.mmdb"))
    with capture_logs() as logs:
        geo.open()
    (warning,) = [it for it in logs if it["log_level"] == "warning"]
    assert (warning["setting"], warning["reason"]) == (
        "geo.country",
        f"{tmp_path}/gone.mmdb cannot be read: No such file or directory",
    )
    assert geo.origin("1.1.1.1") == ConnectionOrigin(asn=13335, organization="Cloudflare")


def test_opened_anew_it_is_the_new_one_unless_that_is_damaged(tmp_path: Path) -> None:
    put(tmp_path, "maxmind", "country")
    geo = sensor(tmp_path)
    geo.open()
    assert geo.origin("8.8.8.8") == ConnectionOrigin(country="US")
    (tmp_path / "geo" / "country.mmdb").write_bytes(b"damaged in place")
    assert geo.origin("1.1.1.1") == ConnectionOrigin(country="AU")
    geo.open()
    assert geo.origin("1.1.1.1") == ConnectionOrigin(country="AU")
    put(tmp_path, "country", "country")
    geo.open()
    assert geo.origin("2606:4700::1111") == ConnectionOrigin(country="AU")


def test_one_that_turns_out_damaged_is_given_up_and_nobody_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "country", "country")
    put(tmp_path, "asn", "asn")
    geo = sensor(tmp_path)
    geo.open()
    healthy = Database.origin

    def damaged(self: Database, address: str) -> ConnectionOrigin | None:
        if self.path.name == "country.mmdb":
            raise GeoError("damaged")
        return healthy(self, address)

    monkeypatch.setattr(Database, "origin", damaged)
    with capture_logs() as logs:
        assert geo.origin("1.1.1.1") == ConnectionOrigin(asn=13335, organization="Cloudflare \x1b[31m")
        assert geo.origin("9.9.9.9") == ConnectionOrigin(asn=19281, organization="Quad9")
    assert [it["event"] for it in logs] == ["a geo database is not used any more"]
