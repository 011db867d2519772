"""The `hermes` command: one module a command group."""

import typer

import hermes
from hermes.cli import artifacts, campaigns, config, doctor, geo, image, outputs, sessions, stix, techniques, verify_evidence
from hermes.cli.search import search
from hermes.cli.stats import stats
from hermes.cli.up import up
from hermes.cli.verify import verify

app = typer.Typer(
    name="hermes",
    help="An SSH honeypot: every attacker gets a real, isolated Linux box, and every byte is kept as evidence.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(up)
app.add_typer(sessions.app, name="sessions")
app.add_typer(artifacts.app, name="artifacts")
app.command()(search)
app.command()(stats)
app.add_typer(campaigns.app, name="campaigns")
app.add_typer(techniques.app, name="techniques")
app.add_typer(stix.app, name="stix")
app.add_typer(outputs.app, name="outputs")
app.add_typer(image.app, name="image")
app.add_typer(config.app, name="config")
app.add_typer(geo.app, name="geo")
app.command()(doctor.doctor)
app.command()(verify)
app.command("verify-evidence")(verify_evidence.check)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"hermes {hermes.__version__}")
