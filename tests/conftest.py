"""Fixtures for every room of the tests."""

from tests.engine.conftest import docker_host, target_image

pytest_plugins = ["tests.sensors"]

__all__ = ["docker_host", "target_image"]
