from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hermes.config import Settings, load
from hermes.config.fields import SETTINGS
from hermes.config.render import flow, scalar, to_yaml

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


@given(TEXT)
def test_text_is_read_back_by_any_reader_of_yaml(text: str) -> None:
    written = scalar(text)
    assert yaml.safe_load(written) == text
    assert written.isascii()
    assert written.isprintable()


@pytest.mark.parametrize(
    "text", ["y", "N", "007", "1e3", "0o17", "1_0", "off", "null", "~", "", "2:30", ".5", "::", "*", "a b", "-x", "=", "<<"]
)
def test_text_that_some_reader_takes_for_something_else_is_quoted(text: str) -> None:
    assert scalar(text).startswith('"')


def test_plain_text_stays_plain() -> None:
    for text in ("hermes", "127.0.0.1", "debian-12", "/var/lib/hermes", "root"):
        assert scalar(text) == text


def test_values_are_written_in_the_units_people_use() -> None:
    assert flow(2**28, SETTINGS["container_pool.limits.memory"].kind) == "256MiB"
    assert flow(7200.0, SETTINGS["server.session_timeout"].kind) == "2h"
    assert flow(None, SETTINGS["server.banner"].kind) == "null"
    assert flow({"*": ("a", "007")}, SETTINGS["authentication.passwords"].kind) == '{"*": [a, "007"]}'
    assert flow(True, SETTINGS["recording.enabled"].kind) == "true"


def read_back(text: str, tmp_path: Path) -> Settings:
    (tmp_path / "written.yaml").write_text(text)
    return load(tmp_path / "written.yaml", environ={}, cwd=tmp_path).settings


def test_all_settings_are_written_and_read_back(tmp_path: Path) -> None:
    overrides = [
        "authentication.passwords={root: [007, '', 'é😀', \"\\e[2J\"], '*': ['*'], null: [null]}",
        "server.banner=line one\nline two\t\x1b",
        "server.login_timeout=1500ms",
        "server.addresses=['::', 0.0.0.0]",
        "container_pool.limits.memory=100000001",
        "data_dir=/tmp/with space # and hash",
    ]
    settings = load(overrides=overrides, environ={}, cwd=tmp_path).settings
    text = to_yaml(settings)
    assert read_back(text, tmp_path) == settings
    assert text.replace("\n", "").isprintable()
    written = load(tmp_path / "written.yaml", environ={}, cwd=tmp_path)
    assert set(written.origins) == set(SETTINGS)


def test_comments_stand_where_they_belong(tmp_path: Path) -> None:
    text = to_yaml(
        Settings(),
        comment=lambda key: "why" if key == "server.port" else "",
        heading=lambda key: "two\nlines" if key == "server.port" else "",
    )
    assert "  # two\n  # lines\n  port: 2222  # why\n" in text
    assert text.count("#") == 3
    assert read_back(text, tmp_path) == Settings()
