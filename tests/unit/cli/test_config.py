import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from hermes.cli.config import app
from hermes.config import Settings, load
from hermes.config.fields import SETTINGS


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hermes.yaml").write_text('server:\n  port: 2022\n  banner: "\\e[2Jhi"\n')


def run(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=environ)


def test_show_prints_every_setting_and_where_it_was_set(tmp_path: Path) -> None:
    result = run("show", "--set", "authentication.passwords.admin=[007]", HERMES_SENSOR__NAME="here")
    assert result.exit_code == 0
    lines = [it.strip() for it in result.stdout.splitlines()]
    assert "port: 2022  # hermes.yaml:2" in lines
    assert "name: here  # HERMES_SENSOR__NAME" in lines
    assert 'passwords: {root: [root], admin: ["007"]}  # --set authentication.passwords.admin' in lines
    assert 'banner: "\\e[2Jhi"  # hermes.yaml:3' in lines
    assert "idle_timeout: 10m" in lines
    assert result.stdout.replace("\n", "").isprintable()
    assert result.stdout.count("  # ") == 4


def test_what_show_prints_can_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(run("show").stdout)
    shown = load(Path("shown.yaml"), environ={}, cwd=tmp_path)
    assert shown.settings == load(environ={}, cwd=tmp_path).settings
    assert set(shown.origins) == set(SETTINGS)


def test_show_as_json() -> None:
    result = run("show", "--json", "--set", "data_dir=data")
    shown = json.loads(result.stdout)
    assert shown["file"] == "hermes.yaml"
    assert shown["origins"] == {"server.port": "hermes.yaml:2", "server.banner": "hermes.yaml:3", "data_dir": "--set data_dir"}
    assert Settings.model_validate(shown["settings"]) == load(overrides=["data_dir=data"], environ={}).settings


def test_check_of_what_is_right() -> None:
    assert run("check").stdout == "ok: hermes.yaml\n"
    assert json.loads(run("check", "--json").stdout) == {"ok": True, "file": "hermes.yaml"}
    Path("hermes.yaml").rename("other.yaml")
    assert run("check", "-c", "other.yaml").stdout == "ok: other.yaml\n"
    if not Path("/etc/hermes/hermes.yaml").exists():
        assert run("check").stdout == "ok: built-in defaults (no configuration file)\n"


def test_check_tells_every_problem() -> None:
    result = run("check", "--set", "server.prot=1", HERMES_SERVER__PORT="x\x1b")
    problems = [
        "HERMES_SERVER__PORT: server.port is 'x\\x1b': must be a whole number from 1 to 65535",
        "--set server.prot: unknown key server.prot; did you mean server.port?",
    ]
    assert (result.exit_code, result.stdout, result.stderr.splitlines()) == (2, "", problems)
    result = run("check", "--json", "--set", "server.prot=1", HERMES_SERVER__PORT="x\x1b")
    assert (result.exit_code, json.loads(result.stdout)) == (2, {"ok": False, "problems": problems})


@pytest.mark.parametrize("command", ["show", "check"])
def test_a_missing_file_is_told_in_one_line(command: str) -> None:
    result = run(command, "-c", "no.yaml")
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", "no.yaml: there is no such file\n")


def test_schema_describes_every_setting() -> None:
    schema = json.loads(run("schema").stdout)
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]) == set(Settings.model_fields)
    assert schema["properties"]["data_dir"]["default"] == "/var/lib/hermes"
    assert schema["$defs"]["ServerConfig"]["properties"]["port"]["maximum"] == 65535
    seconds = schema["$defs"]["ServerConfig"]["properties"]["login_timeout"]["anyOf"]
    assert {it["type"] for it in seconds} == {"number", "string"}


def test_yaml_that_show_prints_means_the_same_to_others() -> None:
    shown = yaml.safe_load(run("show").stdout)
    assert shown["authentication"]["passwords"] == {"root": ["root"]}
    assert shown["server"]["banner"] == "\x1b[2Jhi"
    assert shown["logging"]["events"] == "events.jsonl"


def test_check_tells_what_is_wrong_with_rules_that_it_names() -> None:
    Path("rules").mkdir()
    Path("rules", "own.yar").write_text("rule own {\n condition: nothing }")
    result = run("check", "--set", "analysis.yara_rules=rules")
    assert result.exit_code == 2
    assert "/rules/own.yar:2: " in result.stderr
    (problem,) = json.loads(run("check", "--json", "--set", "analysis.yara_rules=rules").stdout)["problems"]
    assert "unknown identifier `nothing`" in problem
