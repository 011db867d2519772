"""`hermes artifacts`: the files that attackers brought, made and ran, by their content."""

import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import msgspec
import typer

from hermes.analysis import findings
from hermes.analysis.reader import IndexReader
from hermes.cli.console import (
    USAGE,
    ConfigOption,
    JsonOption,
    SetOption,
    console,
    fail,
    load_settings,
    print_json,
    reporting,
    visible,
)
from hermes.cli.new_file import new_file
from hermes.cli.privileges import opened_journal
from hermes.config import Settings
from hermes.errors import AnalysisError
from hermes.evidence.artifacts import Input, copy, size
from hermes.evidence.encryption import pyzipper
from hermes.store import JournalReader
from hermes.store.artifacts import Artifact, known, sightings

PASSWORD = "infected"
TABLE, JSON = 50, 1000
_HASH = re.compile(r"[0-9a-f]{4,64}")

app = typer.Typer(no_args_is_help=True, help="List, show and export the files that attackers brought, made and ran.")
HashArgument = Annotated[str, typer.Argument(metavar="SHA256", help="Its SHA-256, or a beginning that only one has.")]


@app.command("list")
@reporting()
def list_(
    limit: Annotated[
        int | None, typer.Option(min=1, show_default=False, help=f"Files at most: {TABLE}, or {JSON} with --json.")
    ] = None,
    offset: Annotated[int, typer.Option(min=0, help="Files last seen to leave out.")] = 0,
    session: Annotated[str | None, typer.Option("--session", help="Only those of this session.")] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List files by their content, last seen first. Times are UTC."""
    settings = load_settings(config, overrides)
    count = limit or (JSON if as_json else TABLE)
    with opened_journal(settings) as journal:
        found = known(journal, limit=count, offset=offset, session_id=session)
    if as_json:
        print_json([_fields(settings, one) for one in found])
        return
    if not found:
        console.print("No artifacts.")
    for one in found:
        name = visible(one.path[:200]) or "(input of a command)"
        kept = "" if _where(settings, one) else "  (not kept any more)"
        seen = f"{one.last_seen:%Y-%m-%d %H:%M}"
        console.print(f"{one.sha256}  {one.size:>10}  {seen}  {one.sessions:>4}x  {name}{kept}", soft_wrap=True)
    if len(found) == count:
        console.print(f"There may be more: --offset {offset + count}, or a larger --limit.", soft_wrap=True)


@app.command()
@reporting()
def show(sha256: HashArgument, config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show one file: its hashes, what it is, and where, when and as what it was seen. Times are UTC."""
    settings = load_settings(config, overrides)
    with opened_journal(settings) as journal:
        one = _found(journal, sha256)
        seen = sightings(journal, one.sha256)
    looked = _looked_at(settings, one)
    if as_json:
        analysis = msgspec.to_builtins(looked) if looked is not None else None
        print_json({**_fields(settings, one), "analysis": analysis, "seen": msgspec.to_builtins(seen)})
        return
    console.print(f"SHA-256  {one.sha256}")
    about = [("SHA-1", one.sha1), ("MD5", one.md5), ("size", str(one.size)), ("kept", _where(settings, one) or "no")]
    for label, value in (*about, *_said(looked)):
        console.print(f"  {label:<7}{visible(value)}", soft_wrap=True)
    for it in seen:
        name = visible(it.path[:400]) or "(input of a command)"
        line = f"  {it.time:%Y-%m-%d %H:%M:%S}  {visible(it.session_id or '-')}  {it.event:<15}  {name}"
        console.print(line, soft_wrap=True)


@app.command()
@reporting()
def export(
    sha256: HashArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="File to make; by default SHA256.zip here.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The content as it is: live malware.")] = False,
    password: Annotated[str, typer.Option("--password", help="Password of the zip file.")] = PASSWORD,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Export one file in a zip that is encrypted (AES) with a password, so that nothing runs or removes it by accident."""
    settings = load_settings(config, overrides)
    if not password and not raw:
        fail("--password: it cannot be empty", USAGE)
    with new_file(output or Path(f"{sha256}{'' if raw else '.zip'}")) as (file, made):
        with opened_journal(settings) as journal:
            one = _found(journal, sha256)
            inputs = [Input(it.session_id, it.channel) for it in sightings(journal, one.sha256) if it.session_id and it.channel]
        with tempfile.TemporaryFile() as content:
            copy(one.sha256, content, directory=settings.artifacts_dir, recordings=settings.recordings_dir, inputs=inputs)
            if raw:
                shutil.copyfileobj(content, file)
            else:
                _zip(content, file, one, password)
    console.print(f"{visible(str(made))}: {one.size} bytes{'' if raw else f', password {visible(password)}'}", soft_wrap=True)


def _zip(content: BinaryIO, file: BinaryIO, one: Artifact, password: str) -> None:
    with pyzipper.AESZipFile(file, "w", compression=pyzipper.ZIP_DEFLATED, encryption=pyzipper.WZ_AES) as archive:
        archive.setpassword(password.encode())
        with archive.open(one.sha256, "w", force_zip64=True) as member:
            shutil.copyfileobj(content, member)


def _found(journal: JournalReader, beginning: str) -> Artifact:
    """The one artifact whose hash begins so."""
    if not _HASH.fullmatch(beginning.lower()):
        fail(f"{beginning}: give a SHA-256, or at least four of its digits", USAGE)
    found = known(journal, limit=3, beginning=beginning.lower())
    if not found:
        fail(f"no artifact {beginning}")
    if len(found) > 1:
        fail(f"several artifacts begin with {beginning}: {', '.join(one.sha256 for one in found[:2])}, …")
    return found[0]


def _where(settings: Settings, one: Artifact) -> str | None:
    """Where its content is, as far as that is known without reading it."""
    if size(settings.artifacts_dir, one.sha256) is not None:
        return str(settings.artifacts_dir / one.sha256[:2] / one.sha256[2:4] / one.sha256)
    return "recording" if one.source == "input" else None


def _looked_at(settings: Settings, one: Artifact) -> findings.File | None:
    """What the analysis found; None where there is no index, or it has not come so far."""
    with suppress(AnalysisError), IndexReader(settings.index_path) as index:
        return findings.file(index, one.sha256)
    return None


def _said(looked: findings.File | None) -> list[tuple[str, str]]:
    if looked is None or looked.state in ("waiting", "looking"):
        return [("type", "not looked at yet")]
    if looked.failure is not None:
        return [("type", f"not known: {looked.failure}")]
    matches = [("YARA", f"{it.rule}: {it.description}" if it.description else it.rule) for it in looked.matches]
    return [("type", looked.mime), ("", looked.description[:400]), *matches]


def _fields(settings: Settings, one: Artifact) -> dict[str, Any]:
    return {**msgspec.to_builtins(one), "kept": _where(settings, one)}
