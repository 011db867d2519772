"""Outputs and alerts in the configuration: what can be set, and what is said of what cannot."""

from pathlib import Path

import pytest

from hermes.config import load
from hermes.config.outputs import secret_variables
from hermes.config.render import to_yaml
from hermes.errors import ConfigError

GOOD = """\
outputs:
  - {type: jsonl, name: elk, path: stdout}
  - {type: cowrie, name: old, path: /var/log/cowrie.json, events: [session.*, auth.attempt], start: beginning}
  - {type: webhook, name: chat, url: "file:/etc/hermes/slack", format: slack, secret: "env:HOOK_KEY", events: []}
  - {type: syslog, name: siem, address: "[2001:db8::1]:6514", transport: tls, ca_file: /etc/ca.pem}
  - {type: postgresql, name: db, url: "postgresql://h@db.example:5433/honey?sslmode=verify-full", password: "env:DB"}
alerts:
  rules:
    - {name: guessing, output: chat, events: [auth.attempt], where: {accepted: ["false"]}, count: 100, within: 10m, by: sensor}
  honeytokens:
    - {name: backup-user, output: siem, usernames: [backup], passwords: [Sommer2024], severity: high}
"""


def problems(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "h.yaml").write_text(text)
    with pytest.raises(ConfigError) as failure:
        load(Path("h.yaml"), environ={}, cwd=tmp_path)
    return str(failure.value).split("\n")


def test_what_is_set_is_had_and_written_back(tmp_path: Path) -> None:
    (tmp_path / "h.yaml").write_text(GOOD)
    settings = load(tmp_path / "h.yaml", environ={}).settings
    assert [it.name for it in settings.outputs] == ["elk", "old", "chat", "siem", "db"]
    assert [it.name for it in settings.alerts.all] == ["guessing", "backup-user"]
    assert settings.alerts.rules[0].within == 600
    assert secret_variables(settings.outputs) == {"HOOK_KEY", "DB"}
    (tmp_path / "back.yaml").write_text(to_yaml(settings))
    assert load(tmp_path / "back.yaml", environ={}).settings == settings
    assert type(settings).model_validate_json(settings.model_dump_json()) == settings


def test_from_the_environment_and_the_command_line(tmp_path: Path) -> None:
    text = "[{type: jsonl, name: a, path: stdout}]"
    assert load(environ={"HERMES_OUTPUTS": text}, cwd=tmp_path).settings.outputs[0].name == "a"
    assert load(environ={}, overrides=[f"outputs={text}"], cwd=tmp_path).settings.outputs[0].name == "a"
    with pytest.raises(ConfigError, match=r"HERMES_OUTPUTS: outputs\[0\] has no path"):
        load(environ={"HERMES_OUTPUTS": "[{type: jsonl, name: a}]"}, cwd=tmp_path)


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("{type: jsonl, name: Bad Name, path: stdout}", "outputs[0].name is 'Bad Name': must be a name of 1 to 63"),
        ("{type: jsonl, name: a, path: relative}", "outputs[0].path is 'relative': must be stdout, or the absolute path"),
        ("{type: webhok, name: a}", "outputs[0].type is 'webhok': must be one of jsonl, cowrie, webhook, syslog, postgresql"),
        ("{name: a}", "outputs[0] has no type: must be one of jsonl,"),
        ("{type: webhook, name: a}", "outputs[0] has no url: must be an http:// or https:// URL"),
        ("{type: jsonl, name: a, path: stdout, evnts: []}", "unknown key outputs[0].evnts; did you mean events?"),
        ("foo", "outputs[0] is 'foo': must be a mapping with type"),
        ("[a]", "outputs[0] is ['a']: must be a mapping with type"),
        ("{type: webhook, name: a, url: 'ftp://x'}", "outputs[0].url is 'ftp://x': must be an http"),
        ("{type: webhook, name: a, url: 'http://[x'}", "outputs[0].url is 'http://[x': must be an http"),
        ("{type: webhook, name: a, url: 'http://x', batch: 0}", "outputs[0].batch is '0': must be a whole number from 1 to 1000"),
        ("{type: webhook, name: a, url: 'http://x', timeout: soon}", "outputs[0].timeout is 'soon': must be a duration"),
        ("{type: webhook, name: a, url: 'http://x', secret: geheim}", "must be file:/PATH or env:VARIABLE: a secret itself"),
        ("{type: webhook, name: a, url: 'http://x', ca_file: x}", "outputs[0].ca_file is 'x': must be the absolute path"),
        ("{type: syslog, name: a, address: 'a b'}", "outputs[0].address is 'a b': must be a host"),
        ("{type: postgresql, name: a, url: 'mysql://x/y'}", "outputs[0].url is 'mysql://x/y': must be postgresql://"),
        ("{type: postgresql, name: a, url: 'postgresql://x/y', table: 'x;y'}", "outputs[0].table is 'x;y': must be the name"),
        (
            "{type: jsonl, name: a, path: stdout, events: [a, 'B C']}",
            "outputs[0].events[1] is 'B C': must be the name of an event",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, item: str, says: str) -> None:
    (found,) = problems(tmp_path, f"outputs:\n  - {item}\n")
    assert found.startswith("h.yaml:2: ")
    assert says in found


@pytest.mark.parametrize(
    ("alerts", "says"),
    [
        ("rules: [{name: r, output: nix, events: [a.b]}]", "r names the output nix, which cannot take alerts: j"),
        ("rules: [{name: r, output: c, events: [a.b]}]", "r names the output c, which cannot take alerts: j"),
        ("rules: [{name: r, output: j, events: []}]", "alerts.rules[0].events is []: must be a list"),
        ("rules: [{name: r, output: j, events: [a.b], where: {B: [x]}}]", "alerts.rules[0]"),
        ("honeytokens: [{name: t, output: j}]", "alerts.honeytokens[0]: needs at least one of usernames, passwords"),
        ("honeytokens: [{name: t, output: j, hashes: [x]}]", "alerts.honeytokens[0].hashes[0] is 'x': must be a SHA-256"),
        ("rules: [{name: r, output: j, events: [a.b]}, {name: r, output: j, events: [a.b]}]", "two of them have the name r"),
        (
            "{rules: [{name: r, output: j, events: [a.b]}], honeytokens: [{name: r, output: j, texts: [geheim]}]}",
            "a rule has the name r already",
        ),
    ],
)
def test_alerts_that_cannot_be(tmp_path: Path, alerts: str, says: str) -> None:
    outputs = "outputs: [{type: jsonl, name: j, path: stdout}, {type: cowrie, name: c, path: /c}]\n"
    (found,) = problems(tmp_path, f"{outputs}alerts: {{{alerts.strip('{}') if alerts[0] == '{' else alerts}}}\n")
    assert found.startswith("h.yaml:2: ")
    assert says in found


def test_two_of_one_name_or_one_file(tmp_path: Path) -> None:
    twice = "outputs: [{type: jsonl, name: a, path: /x}, {type: cowrie, name: a, path: /x}]\n"
    assert [it.partition(": outputs is a list: ")[2] for it in problems(tmp_path, twice)] == [
        "two outputs have the name a", "two outputs write to /x"
    ]  # fmt: skip
