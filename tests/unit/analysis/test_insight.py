"""What the analyst prepares before it gives up its power."""

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import pytest

from hermes.analysis import insight
from hermes.analysis.insight import Insight
from hermes.broker import filters
from hermes.config import SensorConfig, Settings
from hermes.config.analysis import AnalysisConfig
from hermes.errors import ConfigError


def nothing(settings: Settings, sha256: str, inputs: Sequence[tuple[str, int]]) -> BinaryIO:
    raise AssertionError


def test_mistakes_in_rules_are_told_in_one_line_and_no_process_is_forked(tmp_path: Path) -> None:
    (tmp_path / "a.yar").write_text("rule a { condition: nothing }")
    (tmp_path / "b.yar").write_text("rule")
    settings = Settings(data_dir=tmp_path, analysis=AnalysisConfig(yara_rules=tmp_path))
    before = Insight(nothing)
    with pytest.raises(ConfigError) as caught:
        before.prepare(settings, b"")
    assert "a.yar:1: " in str(caught.value)
    assert "b.yar:1: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before.stages() == []


def test_where_the_analysis_is_turned_off_nothing_is_prepared(tmp_path: Path) -> None:
    made = Insight(nothing)
    made.prepare(Settings(data_dir=tmp_path, analysis=AnalysisConfig(enabled=False, yara_rules=tmp_path / "none")), b"")
    assert made.stages() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has power to give up")
def test_files_are_looked_at_before_what_builds_on_that(tmp_path: Path) -> None:
    with closing(Insight(nothing)) as made:
        made.prepare(Settings(data_dir=tmp_path, sensor=SensorConfig(user="nobody")), filters.look())
        assert [it.name for it in made.stages()] == ["scans", "techniques", "campaigns"]


def test_a_check_names_what_is_wrong_with_either_kind_of_rule(tmp_path: Path) -> None:
    insight.check(AnalysisConfig())
    (tmp_path / "a.yaml").write_text("- id: x")
    with pytest.raises(ConfigError, match=r"a\.yaml:1: "):
        insight.check(AnalysisConfig(technique_rules=tmp_path))
    with pytest.raises(ConfigError, match=r"is no directory"):
        insight.check(AnalysisConfig(yara_rules=tmp_path / "a.yaml"))
