"""`hermes config`: what is set, whether it is right, and what can be set."""

import sys

import typer

from hermes.cli.console import USAGE, ConfigOption, JsonOption, SetOption, print_json, reporting, visible
from hermes.config import Settings, load
from hermes.config.render import to_yaml
from hermes.errors import ConfigError

app = typer.Typer(no_args_is_help=True, help="Show, check and explain the configuration.")


@app.command()
@reporting()
def show(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Print every setting in effect, as YAML, with where each one that is no default was set."""
    loaded = load(config, overrides=overrides or ())
    if as_json:
        print_json(
            {
                "file": None if loaded.path is None else str(loaded.path),
                "settings": loaded.settings.model_dump(mode="json"),
                "origins": dict(loaded.origins),
            }
        )
        return
    sys.stdout.write(to_yaml(loaded.settings, comment=lambda key: visible(loaded.origins.get(key, ""))))


@app.command()
@reporting()
def check(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Say whether the configuration and the rules it names are right, or everything that is wrong with them (exit code 2)."""
    from hermes.analysis import insight  # takes what no other command of this group needs

    try:
        loaded = load(config, overrides=overrides or ())
        insight.check(loaded.settings.analysis)
    except ConfigError as error:
        if not as_json:
            raise
        print_json({"ok": False, "problems": str(error).split("\n")})
        raise typer.Exit(USAGE) from None
    file = None if loaded.path is None else str(loaded.path)
    if as_json:
        print_json({"ok": True, "file": file})
    else:
        sys.stdout.write(f"ok: {visible(file) if file else 'built-in defaults (no configuration file)'}\n")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration file, for editors."""
    print_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **Settings.model_json_schema()})
