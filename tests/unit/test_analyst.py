"""Where the analyst takes the content of attackers' files from."""

from pathlib import Path

import pytest

from hermes.analyst import content
from hermes.config import Settings
from hermes.evidence.artifacts import ArtifactUnavailable
from tests.unit.evidence.test_artifacts import CONTENT, SHA256, keep, record


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path)
    settings.index_dir.mkdir()
    return settings


def test_a_file_that_is_kept_is_opened_as_it_is(settings: Settings) -> None:
    kept = keep(settings.artifacts_dir)
    with content(settings, SHA256, []) as file:
        assert file.name == str(kept)
        assert file.read() == CONTENT


def test_what_only_a_recording_has_is_copied_where_no_name_leads(settings: Settings) -> None:
    record(settings.recordings_dir, 2, CONTENT)
    with content(settings, SHA256, [("s0", 1), ("s1", 2)]) as file:
        assert file.read() == CONTENT
        assert list(settings.index_dir.iterdir()) == []


@pytest.mark.parametrize("sha256", [SHA256, "0" * 64])
def test_what_is_not_there_any_more_is_said(sha256: str, settings: Settings) -> None:
    record(settings.recordings_dir, 2, b"other")
    with pytest.raises(ArtifactUnavailable, match="is not kept"):
        content(settings, sha256, [("s1", 2)])
