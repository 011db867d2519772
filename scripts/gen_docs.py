#!/usr/bin/env python3
"""Write what docs/reference/ says of commands, settings, events and metrics. With --check, only say whether it is up to date."""

import argparse
import ast
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from hermes import events
from hermes.broker.verify import probes as probe_modules
from hermes.broker.verify.probe import ALL as PROBES
from hermes.cli import app
from hermes.config.fields import SECTIONS, SETTINGS, Setting, own_settings
from hermes.config.models import Settings
from hermes.config.render import flow, to_yaml
from hermes.config.section import Section
from hermes.metrics import CATALOGUE, Metric
from hermes.metrics.catalogue import OUTPUTS

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
MADE = "<!-- Made by scripts/gen_docs.py from {source}: change that, then run the script. -->"

MEANINGS = {
    "accepted": "What was asked for was granted.",
    "active": "Containers held by sessions at that moment.",
    "addresses": "Where it listens, `host:port` each.",
    "auth_attempts": "Authentication tries on the connection.",
    "bytes_in": "Bytes the client sent on channels, in all.",
    "bytes_out": "Bytes the client was sent on channels, in all.",
    "cause": "As in `connection.closed`.",
    "channel": "Number of the session channel, counted from 1 within its connection.",
    "channels": "Session channels that were opened, in all.",
    "client_version": "The client's identification string.",
    "compression": "Compression methods, client to server.",
    "container_id": "The container.",
    "detail": "More on the cause, such as the client's own words in its disconnect message.",
    "duration": "Seconds since it was opened.",
    "encryption": "Ciphers, client to server.",
    "engine": "The container engine: `local` or `docker`.",
    "exit_signal": "The signal that ended the process, without `SIG`, if one did.",
    "exit_status": "The process's exit status, if it exited.",
    "forward.requested.host": "Where the forward should lead, or where it should listen.",
    "forward.requested.origin_host": "Where the client says the forwarded connection came from.",
    "forward.requested.origin_port": "Its port.",
    "forward.requested.path": "The socket's path, where the forward is one of Unix sockets.",
    "forward.requested.port": "Its port.",
    "hassh": "The client's HASSH.",
    "height": "Height in characters.",
    "host_key": "Host key algorithms.",
    "image": "The target image.",
    "journal.damaged.kept": "Where the damaged journal was kept.",
    "kex": "Key exchange methods.",
    "key_type": "Type of the public key offered, such as `ssh-ed25519`.",
    "languages": "Languages, client to server.",
    "line": "The line.",
    "local_ip": "The address of this sensor that the client connected to.",
    "local_port": "Its port.",
    "mac": "Message authentication codes, client to server.",
    "method": "`password`, `keyboard-interactive`, `publickey`, `none`, or what else the client named.",
    "new_password": "The new password of a password change request.",
    "operation": "What it should have done, such as `create` or `destroy`.",
    "password": "The password, with method `password`.",
    "reason": "Why, for a human reader.",
    "request": "The request's name.",
    "seconds": "How long it took or lasted, in seconds.",
    "session.timeout.seconds": "The limit, in seconds.",
    "signal": "The signal, without `SIG`.",
    "size": "Containers the pool keeps warm.",
    "source_ip": "The client's address.",
    "source_port": "Its port.",
    "term": "Terminal type, such as `xterm-256color`.",
    "truncated": "The line was longer than what is kept of it.",
    "username": "The user name the client gave.",
    "value": "Its value.",
    "variable": "The variable's name.",
    "connection.version.version": "The identification string, without its line end.",
    "sensor.started.version": "Version of Hermes.",
    "warm": "Warm containers at that moment.",
    "width": "Width in characters.",
}
"""Fields that mean the same wherever they occur, or, as `event.field`, in one event only. A docstring in events.py goes first."""


def cell(text: str) -> str:
    """Text in a table's cell."""
    return " ".join(text.split()).replace("|", "\\|")


def table(*rows: tuple[str, ...]) -> list[str]:
    head, *body = rows
    return ["| " + " | ".join(row) + " |" for row in (head, tuple("---" for _ in head), *body)]


# ---- configuration


def type_text(setting: Setting) -> str:
    """What a setting's value must be, for a table."""
    kind = setting.kind
    if get_origin(kind.type) is Literal:
        return ", ".join(f"`{it}`" for it in get_args(kind.type))
    wants = re.sub(r"^an? ", "", kind.wants)
    return re.sub(r"'([^']+)'", r"`\1`", wants).replace("[ ]", "`[ ]`").replace("{ }", "`{ }`")


def default_text(setting: Setting) -> str:
    return "none" if setting.default is None else f"`{flow(setting.default, setting.kind)}`"


def setting_rows(prefix: str) -> list[str]:
    own = [it for it in SETTINGS.values() if it.key.rpartition(".")[0] == prefix]
    return table(
        ("Key", "Type", "Default", "Meaning", "Environment"),
        *((f"`{it.key}`", cell(type_text(it)), cell(default_text(it)), cell(it.doc), f"`{it.env}`") for it in own),
    )


def item_rows(section: type[Section]) -> list[str]:
    """The settings of one item of a list, those it must have first."""
    own = sorted(own_settings(section), key=lambda it: not section.model_fields[it.key].is_required())
    return table(
        ("Key", "Type", "Default", "Meaning"),
        *(
            (
                f"`{it.key}`",
                cell(type_text(it)),
                "must be set" if section.model_fields[it.key].is_required() else cell(default_text(it)),
                cell(it.doc or f"`{get_args(it.kind.type)[0]}`."),
            )
            for it in own
        ),
    )


ITEMS = (
    (
        "outputs",
        "Outputs",
        """\
Each of `outputs` is a mapping; [the how-to](../how-to/outputs.md) shows them at work:

    outputs:
      - {type: jsonl, name: elk, path: /var/log/hermes/events.jsonl}
      - {type: webhook, name: chat, url: "file:/etc/hermes/slack.url", format: slack, events: []}

`sensor.user` writes the files; root reads the secrets. A SIGHUP takes over what was changed here and in `alerts`.""",
    ),
    ("alerts.rules", "Alert rules", "Alerts go through one of the outputs, after the event they are about."),
    ("alerts.honeytokens", "Honeytokens", "Each thing named is looked for by itself."),
)
"""Lists of sections: key, heading, and what is to be said of them."""


def example() -> str:
    """A complete configuration file that states every default."""

    def heading(key: str) -> str:
        text = " ".join((SECTIONS[key].__doc__ or "").split()) if key in SECTIONS else SETTINGS[key].doc
        return "\n".join(wrap(text, 118 - 2 * (key.count(".") + 1)))

    return to_yaml(Settings(), heading=heading)


def wrap(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines


CONFIGURATION = """\
# Configuration

Hermes runs without any configuration: every setting has a default that works. To change some, write a YAML file with
just those. Hermes takes the first of

1. the file named with `--config PATH`,
2. `hermes.yaml` in the working directory,
3. `/etc/hermes/hermes.yaml`.

A variable of the environment wins over the file: its name is in the last column below. `--set KEY=VALUE` wins over both:

```sh
HERMES_SERVER__PORT=2022 hermes up
hermes up --set server.port=2022 --set 'authentication.passwords={root: [root, 123456], "*": [admin]}'
hermes up --set 'authentication.passwords.admin=[admin]'
```

The last line adds one user to those there are already; everything else replaces the whole value of its key.

`hermes config show` prints what is in effect and where it was set, `hermes config check` says everything that is wrong
with it, and `hermes config schema` prints a JSON Schema for editors. Unknown keys are refused, in the file, in the
environment (`HERMES_…`) and after `--set`; only `HERMES_PYTHON`, `HERMES_TEST_…` and `HERMES_BENCH_…`, which belong to
the scripts, are left alone.

- **Text** is taken as it is written: the password `007` is `007`, and `off` is `off`. Quotes are needed only where YAML
  wants them, such as around `"*"` and around IPv6 addresses.
- **Lists and mappings** are written as in YAML, also in the environment: `HERMES_SERVER__ADDRESSES='[0.0.0.0, "::"]'`.
- **Durations** are seconds, or have a unit: `250ms`, `30s`, `10m`, `2h`, `7d`, `1w`.
- **Sizes** are bytes, or have a unit, each 1024 times the one before: `64k`, `256MiB`, `2GiB` (`256M` and `256MB` mean the same).
- **Paths** that are relative begin at the directory of the file they stand in; from the environment or `--set`, at the
  working directory. `~` is the home directory.
"""


def configuration() -> str:
    """The text of configuration.md."""
    lines = [*CONFIGURATION.splitlines(), "", MADE.format(source="src/hermes/config/models.py")]
    for key, section in SECTIONS.items():
        lines += ["", f"## `{key}`", "", " ".join((section.__doc__ or "").split()), "", *setting_rows(key)]
    lines += ["", "## At the top of the file", "", *setting_rows("")]
    for key, heading, text in ITEMS:
        lines += ["", f"## {heading}", "", *text.splitlines()]
        for tag, section in SETTINGS[key].kind.sections.items():
            doc = " ".join((section.__doc__ or "").split())
            lines += ["", f"### `type: {tag}`" if tag else f"### Each of `{key}`", "", doc, "", *item_rows(section)]
    lines += [
        "",
        "## A complete file",
        "",
        "It states every default, so it changes nothing.",
        "",
        "```yaml",
        *example().splitlines(),
        "```",
    ]
    return "\n".join(lines) + "\n"


# ---- events

EVENTS = """\
# Events

An event is one fact, with a time. Events are kept in the journal, and written as JSON lines where `logging.events` says.
Beside its own fields, each has:

| Field | Type | Meaning |
| --- | --- | --- |
| `id` | int | Its place in the order of all events of this sensor; it grows. |
| `time` | text | When, in UTC: `2026-01-31T12:34:56.123456Z`. |
| `sensor` | text | The sensor's name (`sensor.name`). |
| `event` | text | The event's name. |
| `connection_id` | text, or null | The connection it belongs to. |
| `session_id` | text, or null | The session it belongs to. |

Text that an attacker sent is UTF-8 as it was sent; where it was not UTF-8, bad bytes stand as `\\xNN` and each backslash is
doubled. JSON escapes whatever else could move a terminal.
"""

TYPES = {"str": "text", "int": "int", "float": "number", "bool": "true or false", "list[str]": "list of texts"}


def own_fields(definition: ast.ClassDef) -> list[tuple[ast.AnnAssign, str]]:
    """The fields of an event as its source has them, each with the docstring under it."""
    fields = []
    for statement, following in zip(definition.body, [*definition.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign):
            text = following.value if isinstance(following, ast.Expr) else None
            doc = text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else ""
            fields.append((statement, doc))
    return fields


def field_meaning(tag: str, name: str, doc: str, event_doc: str) -> str:
    """What a field means; text, or a KeyError when nobody has said."""
    if doc:
        return doc
    if f"{tag}.{name}" in MEANINGS:
        return MEANINGS[f"{tag}.{name}"]
    if f"`{name}`" in event_doc:
        return "See above."
    return MEANINGS[name]


def field_type(field: ast.AnnAssign) -> str:
    parts = ast.unparse(field.annotation).split(" | ")
    return TYPES[parts[0]] + (", or null" if "None" in parts else "")


def event_lines(tag: str, definition: ast.ClassDef) -> list[str]:
    doc = " ".join((ast.get_docstring(definition) or "").split())
    lines = ["", f"### `{tag}`", "", doc]
    rows = []
    for field, field_doc in own_fields(definition):
        assert isinstance(field.target, ast.Name)
        name = field.target.id
        rows.append((f"`{name}`", field_type(field), cell(field_meaning(tag, name, field_doc, doc))))
    return lines + (["", *table(("Field", "Type", "Meaning"), *rows)] if rows else [])


def catalogue() -> str:
    """The text of events.md."""
    source = Path(events.__file__).read_text()
    tags = {kind.__name__: tag for tag, kind in events.ALL.items()}
    lines = [*EVENTS.splitlines(), "", MADE.format(source="src/hermes/events.py")]
    headings = [(number, line[7:].strip()) for number, line in enumerate(source.splitlines(), 1) if line.startswith("# ---- ")]
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.ClassDef) and statement.name in tags:
            while headings and headings[0][0] < statement.lineno:
                lines += ["", f"## {headings.pop(0)[1].capitalize()}"]
            lines += event_lines(tags[statement.name], statement)
    return "\n".join(lines) + "\n"


# ---- metrics

METRICS = """\
# Metrics

Where `metrics.address` says, the front answers `GET /metrics` in Prometheus' text format, or in OpenMetrics to whoever accepts
that, and `GET /healthz` with a JSON object of what must be well: `listening`, `journal` (events can be written) and `broker` (it
answers). Health is status 200 when all of it is, else 503. One request a connection, at most eight connections at once, each for
at most five seconds; answers are up to a second old.

```yaml
metrics:
  address: 127.0.0.1:9222
```

Counters are counted where events are taken into the journal, so the two agree. They begin at 0 with each start of the front.
A label has the values that stand here, or `other`: no text of an attacker becomes one. Beside these stand `process_…` of the
client library: CPU time, memory and descriptors of the front.
"""


def metric_row(metric: Metric) -> tuple[str, ...]:
    labels = []
    for name, values in metric.labels.items():
        known = {tuple(events.ALL): "any [event](events.md)", tuple(SETTINGS): "any [setting](configuration.md) that is a limit",
             OUTPUTS: "any name in [`outputs`](configuration.md#outputs)"}  # fmt: skip
        labels.append(f"`{name}`: " + known.get(values, ", ".join(f"`{it}`" for it in values)))
    source = f"`{metric.event.tag()}`" if metric.event else "every event" if metric.kind == "counter" else "the moment"
    return f"`{metric.name}`", metric.kind, cell("; ".join(labels)), cell(metric.meaning), source


def metrics() -> str:
    """The text of metrics.md."""
    rows = table(("Metric", "Type", "Labels", "Meaning", "Taken from"), *map(metric_row, CATALOGUE))
    return "\n".join([*METRICS.splitlines(), "", MADE.format(source="src/hermes/metrics/catalogue.py"), "", *rows]) + "\n"


COMMANDS = """\
# Commands

Every command ends with exit code 0 when it did what was asked, 1 when it could not (one line on standard error says why), 2 when
the command line or the configuration is wrong.
"""


def command_lines(command: Any, path: str) -> list[str]:
    """One command with its options, or all the commands of a group."""
    if hasattr(command, "commands"):
        return [line for name, it in command.commands.items() for line in command_lines(it, f"{path} {name}")]
    rows = []
    arguments = ""
    for it in command.params:
        if it.param_type_name == "argument":
            name = it.metavar or it.name.upper()
            arguments += f" {name}" if it.required else f" [{name}]"
        else:
            names = ", ".join(f"`{name}`" for name in it.opts)
            rows.append((names, f"`{it.metavar}`" if it.metavar else "", cell(it.help or "")))
    doc = " ".join((command.help or "").split())
    options = ["", *table(("option", "value", "meaning"), *rows)] if rows else []
    return ["", f"## `{path}{arguments}`", "", doc, *options]


def commands() -> str:
    """The reference of the command line."""
    lines = [*COMMANDS.splitlines(), "", MADE.format(source="src/hermes/cli/")]
    return "\n".join([*lines, *command_lines(typer.main.get_command(app), "hermes")]) + "\n"


# ---- hermes verify

VERIFY = """\
# What `hermes verify` tries

Hermes attacks a box of its own: one of the pool, made as attackers' boxes are, from inside, as root and as an ordinary user. At
every `hermes up`, before it listens, it runs the quick set; if one attack is not held, it says which and why, and does not
listen. `hermes verify` runs all of them on demand, also beside a running sensor:

```sh
hermes verify                           # a line an attack; exit code 1 if one is not held
hermes verify --json --output report.json
hermes verify --quick                   # what `hermes up` tries
```

A small program, the *agent*, is put into the box by the way every session's processes come in. It makes the system calls that
Hermes asks for, one by one, so that each attack is made from where an attacker stands, whatever the engine and the image. The
host looks on: at its canaries (sockets and files that anyone on the machine may touch, but no box), the box's processes as they
are outside, its own settings and clock.

- **held**: the attack was made and nothing got through. **FAILED**: it got through, or it could not be made: nothing is known.
- No attack harms the machine if it gets through: nothing is stopped, filled, overwritten or starved. What could be, is only
  opened, asked for with arguments that no kernel accepts, or bounded a little above the limit that should hold.
- A report is true for the engine, runtime, kernel, image and policy that it names. It cannot find what nobody thought of, and no
  attack of it is a kernel exploit.
- With gVisor (`runtime: runsc`) a box has a kernel of its own. What that one lets its processes do counts as held as long as the
  host sees nothing of it: the detail says so.
- A **warning** says what is as configured, or as the engine has it, and still weakens the box: a Docker daemon without
  `userns-remap`, or `container_pool.security.no_new_privileges` off.

## The report

`--json` prints one object, and `--output` writes the same:

| Field | Meaning |
| --- | --- |
| `held` | Every attack was held. |
| `probes` | A list of objects, in the order in which they ran; see below. |
| `warnings` | Sentences. |
| `quick` | Only the quick set was run. |
| `time`, `seconds` | When it began (UTC), and how long it took. |
| `hermes`, `engine`, `runtime`, `kernel`, `machine`, `image`, `image_digest` | What it is true for. |
| `policy` | The same: a SHA-256 of everything that limits a box. |

Each of `probes` has `name`, `held`, `detail` (what held it, or what got through), `group`, `tries` (what was tried), `seconds`.
"""


def probes() -> str:
    """The reference of `hermes verify`."""
    lines = [*VERIFY.splitlines(), "", MADE.format(source="src/hermes/broker/verify/probes/")]
    for group, name in dict.fromkeys((it.group, it.group.capitalize()) for it in PROBES.values()):
        doc = " ".join((sys.modules[f"{probe_modules.__name__}.{group}"].__doc__ or "").split())
        own = [it for it in PROBES.values() if it.group == group]
        rows = [(f"`{it.name}`", "quick" if it.quick else "full", cell(it.tries)) for it in own]
        lines += ["", f"## {name}", "", doc, "", *table(("Attack", "Set", "What is tried"), *rows)]
    return "\n".join(lines) + "\n"


DOCUMENTS = {
    "commands.md": commands,
    "configuration.md": configuration,
    "events.md": catalogue,
    "metrics.md": metrics,
    "verify.md": probes,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a document is not up to date")
    check = parser.parse_args().check
    stale = []
    for name, text in DOCUMENTS.items():
        path = REFERENCE / name
        if not path.exists() or path.read_text() != text():
            stale.append(path.name)
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text())
    if check and stale:
        sys.stderr.write(f"not up to date: {', '.join(stale)}; run scripts/gen_docs.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
