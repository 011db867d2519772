"""Databases in MaxMind's mmdb format: opened, asked, and given up when they are damaged. Nothing here costs a session."""

import functools
import ipaddress
import itertools
import os
import stat
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple

import maxminddb
import structlog

from hermes.config import Settings
from hermes.errors import GeoError
from hermes.events import ConnectionOrigin

log = structlog.get_logger(__name__)

Kind = Literal["country", "asn"]
KINDS: tuple[Kind, ...] = ("country", "asn")

MAX_DATABASE = 512 * 1024**2
"""Bytes of a database, which is held in memory."""
REMEMBERED = 10_000
"""Addresses whose origin is remembered; a look-up takes some ten microseconds."""
MAX_ORGANIZATION = 200
LOOKED_AT = 100
"""Records that are looked at to see what a database tells."""

_DAMAGE = (
    maxminddb.InvalidDatabaseError, ValueError, TypeError, LookupError, OverflowError, RecursionError, MemoryError, struct.error,
)  # fmt: skip
"""What the library raises for a file that is damaged."""


class Facts(NamedTuple):
    """What a database says of itself."""

    type: str
    built: int
    """Seconds since the epoch."""
    ip_version: int


class Database:
    """One database, in memory: neither a change of its file nor what is wrong in it can hurt. Raises GeoError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise GeoError(f"{path} is no regular file")
            if status.st_size > MAX_DATABASE:
                raise GeoError(f"{path} is larger than {MAX_DATABASE} bytes")
            with path.open("rb") as file:
                self._reader = maxminddb.open_database(file, maxminddb.MODE_FD)
            about = self._reader.metadata()
            built = int(about.build_epoch)
            self.facts = Facts(str(about.database_type), built if 0 <= built < 2**35 else 0, int(about.ip_version))
        except OSError as error:
            raise GeoError(f"{path} cannot be read: {error.strerror}") from error
        except _DAMAGE as error:
            raise GeoError(f"{path} is no mmdb database, or damaged") from error

    def origin(self, address: str) -> ConnectionOrigin | None:
        """Return what it knows of an address (the country, or the system), None if that is nothing."""
        if ":" in address and self.facts.ip_version == 4:
            return None
        try:
            return _origin(self._reader.get(address))
        except _DAMAGE as error:
            raise GeoError(f"{self.path} is damaged") from error

    def require(self, kind: Kind) -> None:
        """Raise GeoError unless the first things it holds tell countries, or systems."""
        try:
            first = [_origin(record) for _, record in itertools.islice(self._reader, LOOKED_AT)]
        except _DAMAGE as error:
            raise GeoError(f"{self.path} is damaged") from error
        if not any(origin is not None and getattr(origin, kind) is not None for origin in first):
            raise GeoError(f"{self.path.name} does not tell the {'country' if kind == 'country' else 'ASN'} of addresses")


def _origin(record: Any) -> ConnectionOrigin | None:
    """Read a record of MaxMind's form, of ip-location-db's, or of ipinfo's."""
    if not isinstance(record, dict):
        return None
    country = record.get("country_code") or record.get("country") or record.get("registered_country")
    if isinstance(country, dict):
        country = country.get("iso_code")
    number = record.get("autonomous_system_number") or record.get("asn")
    if isinstance(number, str):
        number = number.upper().removeprefix("AS")
        number = int(number) if number.isdecimal() and len(number) <= 10 else None
    organization = record.get("autonomous_system_organization") or record.get("as_name")
    origin = ConnectionOrigin(
        country=country.upper() if isinstance(country, str) and len(country) == 2 and country.isalpha() else None,
        asn=number if isinstance(number, int) and 0 < number < 2**32 else None,
        organization=organization[:MAX_ORGANIZATION] if isinstance(organization, str) and organization else None,
    )
    return None if origin == ConnectionOrigin() else origin


def places(settings: Settings) -> dict[Kind, tuple[Path, bool]]:
    """Where each database is looked for, and whether the operator named it."""
    return {
        "country": (settings.geo.country or settings.geo_dir / "country.mmdb", settings.geo.country is not None),
        "asn": (settings.geo.asn or settings.geo_dir / "asn.mmdb", settings.geo.asn is not None),
    }


class Databases:
    """The databases of a running sensor."""

    def __init__(self, settings: Settings) -> None:
        self._places = places(settings)
        self._open: dict[Kind, Database] = {}
        self._remembered = functools.lru_cache(REMEMBERED)(self._look_up)

    def open(self) -> None:
        """Open them, or open them anew; log what cannot be used. One that cannot be opened anew stays as it was."""
        for kind, (path, named) in self._places.items():
            if not named and not os.path.exists(path):  # noqa: PTH110 - never raises
                continue
            try:
                database = Database(path)
                database.require(kind)
            except GeoError as error:
                log.warning("a geo database is not used", setting=f"geo.{kind}", reason=str(error), before=kind in self._open)
            else:
                self._open[kind] = database
                log.info("a geo database is used", setting=f"geo.{kind}", path=str(path), type=database.facts.type)
        self._remembered.cache_clear()

    def origin(self, address: str) -> ConnectionOrigin | None:
        """Return where an address is registered, None if that is not known."""
        return self._remembered(address) if self._open else None

    def _look_up(self, address: str) -> ConnectionOrigin | None:
        try:
            if not ipaddress.ip_address(address).is_global:
                return None
        except ValueError:
            return None
        found: dict[Kind, ConnectionOrigin] = {}
        for kind, database in list(self._open.items()):
            try:
                if (origin := database.origin(address)) is not None:
                    found[kind] = origin
            except GeoError as error:
                log.warning("a geo database is not used any more", setting=f"geo.{kind}", reason=str(error))
                del self._open[kind]
        if not found:
            return None
        country, system = found.get("country", ConnectionOrigin()), found.get("asn", ConnectionOrigin())
        return ConnectionOrigin(country=country.country, asn=system.asn, organization=system.organization)
