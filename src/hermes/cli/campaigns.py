"""`hermes campaigns`: sessions that belong together, and why."""

from datetime import UTC, datetime
from typing import Annotated

import msgspec
import typer

from hermes.analysis import findings
from hermes.analysis.findings import Campaign, Member
from hermes.analysis.traits import KINDS
from hermes.cli.console import ConfigOption, JsonOption, SetOption, console, load_settings, print_json, reporting
from hermes.cli.indexed import opened
from hermes.cli.words import short, when

SHOWN_REASONS = 30
SHOWN_SESSIONS = 50

app = typer.Typer(no_args_is_help=True, help="Sessions joined by what they share: keys, files, places, commands, credentials.")


@app.command("list")
@reporting()
def list_(
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Only those active since: `90m`, `7d`, `2026-01-31`, `2026-01-31T12:00Z`.")
    ] = None,
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List campaigns, the last active first. Times are UTC."""
    moment = None if since is None else when(since, datetime.now(UTC))
    with opened(load_settings(config, overrides)) as index:
        found = findings.campaigns(index, limit, since=moment)
    if as_json:
        print_json(msgspec.to_builtins(found))
        return
    if not found:
        console.print("No campaigns.")
    for campaign in found:
        _about(campaign, 3)


@app.command()
@reporting()
def show(
    campaign: Annotated[str, typer.Argument(metavar="ID", help="Name of the campaign, such as C42, or one it had before.")],
    config: ConfigOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one campaign: what its sessions share, and the newest of them. Times are UTC."""
    with opened(load_settings(config, overrides)) as index:
        found, members = findings.campaign(index, campaign)
    if as_json:
        print_json({**msgspec.to_builtins(found), "session_list": msgspec.to_builtins(members)})
        return
    _about(found, SHOWN_REASONS)
    console.print("")
    for member in members[:SHOWN_SESSIONS]:
        console.print("  " + told(member), soft_wrap=True)
    if found.sessions > SHOWN_SESSIONS:
        console.print(f"  … and {found.sessions - SHOWN_SESSIONS} more; --json gives the newest {findings.SHOWN_SESSIONS}")


def told(member: Member) -> str:
    """A session on one line."""
    who = f"{short(member.username, 32)} from {short(member.source_ip, 45)}"
    return f"{member.time:%Y-%m-%d %H:%M}  {short(member.session_id, 64)}  {who}"


def _about(campaign: Campaign, most: int) -> None:
    days = f"{campaign.first:%Y-%m-%d %H:%M} to {campaign.last:%Y-%m-%d %H:%M}"
    console.print(
        f"{campaign.id}  {campaign.sessions} sessions from {campaign.addresses} addresses, {days}", soft_wrap=True
    )  # fmt: skip
    for reason in campaign.reasons[:most]:
        console.print(
            f"    {reason.sessions} share {KINDS.get(reason.kind, reason.kind)}: {short(reason.label, 160)}", soft_wrap=True
        )
