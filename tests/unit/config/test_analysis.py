import pytest

from hermes.config import load
from hermes.errors import ConfigError


def test_a_look_needs_the_memory_for_what_it_looks_at() -> None:
    with pytest.raises(ConfigError) as caught:
        load(overrides=["analysis.scan_memory=64MiB"], environ={})
    assert "analysis.scan_memory is '64MiB': the memory must be at least three times the bytes" in str(caught.value)
    load(overrides=["analysis.scan_memory=64MiB", "analysis.scan_bytes=16MiB"], environ={})
