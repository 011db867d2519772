"""Fixtures for every room of the tests."""

from hypothesis import settings

pytest_plugins = ["tests.real", "tests.sensors"]

settings.register_profile("hermes", deadline=None)  # a machine may be busy: no test asserts a time
settings.load_profile("hermes")
