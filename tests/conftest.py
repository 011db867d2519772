"""Fixtures for every room of the tests."""

pytest_plugins = ["tests.real", "tests.sensors"]

from hypothesis import settings

settings.register_profile("hermes", deadline=None)  # a machine may be busy: no test asserts a time
settings.load_profile("hermes")
