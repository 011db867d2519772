"""`hermes techniques`: what attackers did, in the words of MITRE ATT&CK, and what shows it."""

from typing import Annotated

import msgspec
import typer

from hermes.analysis import findings
from hermes.analysis.rules_match import catalogue
from hermes.cli.campaigns import told
from hermes.cli.console import ConfigOption, JsonOption, SetOption, console, load_settings, print_json, reporting
from hermes.cli.indexed import opened
from hermes.cli.words import short
from hermes.store import JournalReader

app = typer.Typer(no_args_is_help=True, help="Techniques of MITRE ATT&CK that sessions show.")


@app.command("list")
@reporting()
def list_(
    technique: Annotated[
        str | None, typer.Option("--technique", metavar="T1234", help="The newest sessions that show it, instead of numbers.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many sessions.")] = 50,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List techniques and in how many sessions each was seen, or the sessions of one."""
    names = catalogue()
    with opened(load_settings(config, overrides)) as index:
        if technique is not None:
            members = findings.sessions_showing(index, technique.upper(), limit)
            if as_json:
                print_json(msgspec.to_builtins(members))
            for member in [] if as_json else members:
                console.print(told(member), soft_wrap=True)
            return
        counts = findings.technique_counts(index)
    if as_json:
        print_json(
            [{"technique": it, "name": names[it].name if it in names else None, "sessions": count} for it, count in counts]
        )
        return
    for it, count in counts:
        console.print(f"{count:>8}  {it:<9}  {names[it].name if it in names else ''}", soft_wrap=True)


@app.command()
@reporting()
def show(
    session: Annotated[str, typer.Argument(metavar="ID", help="Session id, or a beginning that only one session has.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what one session did: techniques with their evidence, its files, what came back with it, its campaign."""
    settings = load_settings(config, overrides)
    with opened(settings) as index:
        with JournalReader(settings.journal_path) as journal:
            session_id = journal.get_session(session).session_id
        found, back = findings.techniques(index, session_id), findings.returns(index, session_id)
        files, campaign = findings.session_files(index, session_id), findings.campaign_of(index, session_id)
    if as_json:
        print_json(
            {
                "session_id": session_id,
                "campaign": campaign,
                "techniques": msgspec.to_builtins(found),
                "returns": msgspec.to_builtins(back),
                "files": [{"path": path, **msgspec.to_builtins(file)} for path, file in files],
            }
        )
        return
    console.print(f"Session {short(session_id)}" + (f", of campaign {campaign}" if campaign else ""), soft_wrap=True)
    for it in back:
        other = f"that session {short(it.earlier_session, 64)} left" if it.session_id == session_id else "that it had left"
        verdict = "" if it.accepted else ", refused"
        console.print(f"  {it.kind}: {short(it.value, 100)} {other} ({it.time:%Y-%m-%d %H:%M}{verdict})", soft_wrap=True)
    for finding in found:
        console.print(f"  {finding.technique:<9}  {short(finding.name)} ({finding.count})", soft_wrap=True)
        for evidence in finding.evidence[:3]:
            console.print(f"             event {evidence.event_id}: {short(evidence.text, 200)}", soft_wrap=True)
    for path, file in files:
        about = file.failure or file.description or file.state
        matches = "".join(f", {short(match.namespace, 40)}:{short(match.rule, 60)}" for match in file.matches[:10])
        console.print(f"  {file.sha256}  {short(path or '(input)', 120)}", soft_wrap=True)
        console.print(f"             {file.size} bytes, {short(about, 200)}{matches}", soft_wrap=True)
