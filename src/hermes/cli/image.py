"""`hermes image`: build the target images, and list them."""

from typing import Annotated

import typer

from hermes.broker import image
from hermes.cli.console import ConfigOption, JsonOption, SetOption, console, load_settings, print_json, reporting, visible

app = typer.Typer(no_args_is_help=True, help="Build and list target images.")


@app.command()
@reporting()
def build(
    name: Annotated[str | None, typer.Argument(help="Image to build; by default the configured one.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Build again, even when the image is there and up to date.")] = False,
    config: ConfigOption = None,
    overrides: SetOption = None,
) -> None:
    """Build an image from Debian packages, unless it is there already. Takes about a minute and 1 GB of disk."""
    settings = load_settings(config, overrides)
    definition = image.find(name or settings.container_pool.image)
    built = image.build(definition, settings.data_dir, lambda step: console.print(visible(step), soft_wrap=True), force=force)
    console.print(f"{built.name} is ready: {visible(str(built.rootfs.parent))}", soft_wrap=True)


@app.command("list")
@reporting()
def list_(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """List the images that can be built, and those that are."""
    settings = load_settings(config, overrides)
    stored = image.list_images(settings.data_dir)
    if as_json:
        print_json([_fields(entry) for entry in stored])
        return
    for entry in stored:
        console.print(f"{entry.name:<16} {_state(entry):<34} {visible(entry.description)}", soft_wrap=True)


def _state(entry: image.Stored) -> str:
    if entry.manifest is None:
        return "not built"
    facts = f"{entry.manifest.size // 1024**2} MB, {entry.manifest.built.astimezone():%Y-%m-%d %H:%M}"
    return f"built ({facts})" if entry.current else f"out of date ({facts})"


def _fields(entry: image.Stored) -> dict[str, object]:
    manifest = entry.manifest
    return {
        "name": entry.name,
        "description": entry.description,
        "digest": entry.digest,
        "built": None if manifest is None else manifest.built.isoformat(),
        "current": entry.current,
        "size": None if manifest is None else manifest.size,
        "packages": None if manifest is None else manifest.packages,
    }
