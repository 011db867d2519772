"""`hermes geo`: where addresses are registered; bring the databases that tell."""

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hermes.broker import data_dir
from hermes.cli.console import (
    FAILED,
    USAGE,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    err,
    fail,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.cli.privileges import become_owner_of
from hermes.config import Settings
from hermes.errors import GeoError, MachineError

app = typer.Typer(no_args_is_help=True, help="Where addresses are registered: bring the databases, and ask them.")


@app.command()
@reporting()
def update(
    force: Annotated[bool, typer.Option("--force", help="Fetch again what is up to date.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring the newest databases of countries and of autonomous systems (`geo.*_package`), with their licences.

    A running sensor takes them when it is told to reload (SIGHUP). Exit code 1 when one of them cannot be had.
    """
    from hermes.geo import update as updating
    from hermes.geo.databases import KINDS

    settings = load_settings(config, overrides)
    http = updating.client(settings.geo)  # reads certificates, which who we become may not
    _make_directory(settings)
    outcomes: dict[str, dict[str, Any]] = {}
    with http:
        for kind in KINDS:
            try:
                made, fresh = updating.update(settings.geo, settings.geo_dir, kind, http, force=force)
            except GeoError as error:
                outcomes[kind] = {"error": str(error)}
            else:
                outcomes[kind] = {
                    "package": made.package, "version": made.version, "built": made.built, "licence": made.licence,
                    "homepage": made.homepage, "updated": fresh, "attribution": str(settings.geo_dir / f"{kind}.txt"),
                }  # fmt: skip
    if as_json:
        print_json(outcomes)
    else:
        for name, outcome in outcomes.items():
            _show_update(name, outcome)
        if any(it.get("updated") for it in outcomes.values()):
            console.print("a running sensor takes it on reload: systemctl reload hermes, or SIGHUP", soft_wrap=True)
    if any("error" in it for it in outcomes.values()):
        raise typer.Exit(FAILED)


def _show_update(kind: str, outcome: dict[str, Any]) -> None:
    if "error" in outcome:
        err.print(visible(f"hermes: geo {kind}: {outcome['error']}"), soft_wrap=True)
        return
    state = "is new" if outcome["updated"] else "is up to date"
    said = f"{outcome['package']} {outcome['version']}, of {outcome['built']}, {state}"
    console.print(visible(f"{kind:<8} {said}"), soft_wrap=True)
    console.print(visible(f"         licence {outcome['licence']}, {outcome['homepage']}"), soft_wrap=True)
    console.print(visible(f"         attribution and terms: {outcome['attribution']}"), soft_wrap=True)


def _make_directory(settings: Settings) -> None:
    """Have the directory of databases, and no more power than it takes to write there."""
    if os.geteuid() == 0:
        data_dir.prepare_geo(settings)
        become_owner_of(settings.geo_dir)
        return
    try:
        settings.geo_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make {settings.geo_dir}: {error.strerror}") from error


@app.command()
@reporting()
def show(
    address: Annotated[str | None, typer.Argument(metavar="IP", help="An address; without one, the databases are shown.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where an address is registered, or which databases there are, how old, and under which licence."""
    import ipaddress

    from hermes.geo.databases import Database, places
    from hermes.geo.update import installed

    settings = load_settings(config, overrides)
    if address is not None:
        try:
            address = str(ipaddress.ip_address(address))
        except ValueError:
            fail(f"{address!a} is no IP address", USAGE)
    become_owner_of(settings.geo_dir)
    found: dict[str, dict[str, Any]] = {}
    for kind, (path, named) in places(settings).items():
        try:
            database = Database(path)
            database.require(kind)
            origin = None if address is None else database.origin(address)
        except GeoError as error:
            found[kind] = {"path": str(path), "error": str(error)}
            continue
        built = datetime.fromtimestamp(database.facts.built, UTC)
        found[kind] = {"path": str(path), "type": database.facts.type, "built": built.isoformat()}
        if not named and (brought := installed(settings.geo_dir, kind)) is not None:
            found[kind] |= {"package": brought.package, "version": brought.version, "licence": brought.licence,
                            "homepage": brought.homepage, "attribution": str(path.with_suffix(".txt"))}  # fmt: skip
        if address is not None:
            found[kind]["known"] = origin is not None
            fields = ("country",) if kind == "country" else ("asn", "organization")
            found[kind] |= {field: getattr(origin, field, None) for field in fields}
    usable = any("error" not in it for it in found.values())
    if as_json:
        print_json({"address": address, "databases": found})
    elif address is not None and usable:
        _show_origin(address, found)
    else:
        for name, facts in found.items():
            _show_database(name, facts)
    if not usable:
        fail("there is no database: run hermes geo update, or set geo.country and geo.asn")


def _show_origin(address: str, found: dict[str, dict[str, Any]]) -> None:
    country, system = found["country"].get("country"), found["asn"]
    number = f"AS{system['asn']} {system.get('organization') or ''}".strip() if system.get("asn") else "unknown"
    console.print(visible(f"{address}  country {country or 'unknown'}  system {number}"), soft_wrap=True)
    for kind, facts in found.items():
        if "error" in facts:
            err.print(visible(f"hermes: geo {kind}: {facts['error']}"), soft_wrap=True)
        elif "licence" in facts:
            console.print(visible(f"{kind}: {facts['package']}, licence {facts['licence']}, {facts['homepage']}"), soft_wrap=True)


def _show_database(kind: str, facts: dict[str, Any]) -> None:
    if "error" in facts:
        err.print(visible(f"hermes: geo {kind}: {facts['error']}"), soft_wrap=True)
        return
    where = Path(facts["path"])
    console.print(visible(f"{kind:<8} {facts['type']}, built {facts['built'][:10]}: {where}"), soft_wrap=True)
    if "licence" in facts:
        said = f"{facts['package']} {facts['version']}, licence {facts['licence']}: {facts['attribution']}"
        console.print(visible(f"         {said}"), soft_wrap=True)
