import pytest

import hermes.testing


def test_the_fakes_are_exported_lazily() -> None:
    for name in hermes.testing.__all__:
        assert getattr(hermes.testing, name).__name__ == name
    with pytest.raises(AttributeError, match="no_such"):
        _ = hermes.testing.no_such
