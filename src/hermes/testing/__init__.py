"""For tests of Hermes and of what is built on it: a pytest plugin with mocks, and fakes that keep the real contracts.

The plugin (`hermes.testing.plugin`) loads by itself wherever Hermes is installed, so nothing is imported here before it is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hermes.testing.engines import BrokenEngine, FakeEngine, NeverEngine, SlowEngine, WrappedEngine
    from hermes.testing.pool import FakePool

__all__ = ["BrokenEngine", "FakeEngine", "FakePool", "NeverEngine", "SlowEngine", "WrappedEngine"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("hermes.testing.pool" if name == "FakePool" else "hermes.testing.engines"), name)
