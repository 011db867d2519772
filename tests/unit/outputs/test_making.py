"""From settings to sinks: secrets where they are, certificates, and outputs that lack something."""

import ssl
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from hermes.config import Settings
from hermes.errors import ConfigError
from hermes.outputs import unmatched
from hermes.outputs.making import Unusable, make_all, read_secret, trust
from hermes.outputs.sink import SinkError
from tests.unit.outputs.world import record


def test_a_secret_is_read_from_a_file_or_a_variable(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("geheim \n")
    assert read_secret(f"file:{tmp_path}/key", {}, "k") == "geheim "
    assert read_secret("env:KEY", {"KEY": "geheim"}, "k") == "geheim"


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("file:{}/none", "k is file:.*/none: it cannot be read: No such file or directory"),
        ("file:{}/empty", "k is file:.*/empty: it is empty"),
        ("file:{}/binary", "k is file:.*/binary: it cannot be read"),
        ("env:NONE", "k is env:NONE: there is no such variable"),
    ],
)
def test_one_that_is_not_there_is_said(tmp_path: Path, where: str, says: str) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=says):
        read_secret(where.format(tmp_path), {}, "k")


def test_whom_to_trust(tmp_path: Path) -> None:
    context = trust("", "x")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.cert_store_stats()["x509_ca"] > 50
    (tmp_path / "ca.pem").write_text("nonsense")
    for name in ("ca.pem", "none.pem"):
        with pytest.raises(ConfigError, match=rf"ca_file of x is .*{name}: it cannot be used"):
            trust(str(tmp_path / name), "x")


@pytest.mark.asyncio
async def test_an_output_that_lacks_something_fails_by_itself_and_costs_no_other(tmp_path: Path) -> None:
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path,
            "outputs": [
                {"type": "jsonl", "name": "a", "path": "stdout"},
                {"type": "cowrie", "name": "b", "path": "/c.json"},
                {"type": "webhook", "name": "c", "url": "env:NONE"},
                {"type": "webhook", "name": "d", "url": "env:URL", "secret": "env:KEY"},
                {"type": "syslog", "name": "e", "address": "x"},
                {"type": "postgresql", "name": "f", "url": "postgresql://x/y", "password": "env:KEY"},
            ],
        }
    )
    with capture_logs() as logs:
        sinks = make_all(settings, {"URL": "https://x.example/geheim", "KEY": "geheim"})
    assert [type(it).__name__ for it in sinks] == [
        "FileSink", "FileSink", "Unusable", "WebhookSink", "SyslogSink", "PostgresSink"
    ]  # fmt: skip
    assert "geheim" not in str(logs)
    assert "outputs: url of c is env:NONE" in logs[0]["reason"]
    lacking = sinks[2]
    assert isinstance(lacking, Unusable)
    with pytest.raises(SinkError, match="env:NONE"):
        await lacking.send([record(1)])
    for it in sinks:
        await it.close()


def test_patterns_that_match_no_event_are_found() -> None:
    settings = Settings.model_validate(
        {
            "outputs": [{"type": "jsonl", "name": "a", "path": "stdout", "events": ["session.*", "sesion.*", "*"]}],
            "alerts": {"rules": [{"name": "r", "output": "a", "events": ["auth.attempted", "auth.attempt"]}]},
        }
    )
    assert unmatched(settings) == [("a", "sesion.*"), ("r", "auth.attempted")]
