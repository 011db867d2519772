"""Where an artifact lies."""

from pathlib import Path

import pytest

from hermes import artifacts


def test_each_has_a_place_of_its_own() -> None:
    assert artifacts.path(Path("/a"), "0123" + "f" * 60) == Path("/a/01/23") / ("0123" + "f" * 60)


@pytest.mark.parametrize("name", ["", "..", "A" * 64, "../" * 22, "0" * 63, "0" * 65, "0" * 64 + "\n"])
def test_nothing_else_has_one(name: str) -> None:
    with pytest.raises(ValueError, match="not a SHA-256"):
        artifacts.path(Path("/a"), name)
