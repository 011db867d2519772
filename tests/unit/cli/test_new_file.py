"""Files that commands make."""

from pathlib import Path

import pytest
import typer

from hermes.cli.new_file import new_file


def test_a_file_is_its_makers_alone(tmp_path: Path) -> None:
    with new_file(tmp_path / "a") as (file, place):
        file.write(b"x")
    assert place.read_bytes() == b"x"
    assert place.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("there", ["file", "link", "missing directory", "-"])
def test_nothing_is_written_over_or_elsewhere(tmp_path: Path, there: str) -> None:
    place = Path("-") if there == "-" else tmp_path / ("no/where" if "missing" in there else "a")
    if there == "file":
        place.write_text("mine")
    elif there == "link":
        place.symlink_to(tmp_path / "b")
    with pytest.raises(typer.Exit), new_file(place):
        pytest.fail("it was made")
    assert not (tmp_path / "b").exists()
    assert there != "file" or place.read_text() == "mine"


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_file(tmp_path / "a") as (file, _):
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
