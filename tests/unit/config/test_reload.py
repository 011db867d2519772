"""What a running sensor takes over of changed settings, and what waits."""

from hermes.config import Settings, reload
from hermes.config.fields import SETTINGS, value_of
from hermes.config.reload import RELOADED


def settings(**sections: object) -> Settings:
    return Settings.model_validate(sections)


def test_nothing_changed() -> None:
    assert reload(settings(), settings()) == (settings(), [], [])


def test_what_can_be_taken_over_is_and_the_rest_is_named() -> None:
    old = settings(server={"banner": "old"})
    new = settings(
        server={"port": 22, "banner": None, "max_connections": 7},
        authentication={"passwords": {"admin": ["a", "b"]}},
        container_pool={"size": 9, "engine": "docker", "limits": {"pids": 99}},
        data_dir="/elsewhere",
    )
    fresh = reload(old, new)
    assert set(fresh.changed) == {"server.banner", "server.max_connections", "authentication.passwords", "container_pool.size"}
    assert set(fresh.ignored) == {"server.port", "container_pool.engine", "container_pool.limits.pids", "data_dir"}
    assert fresh.settings.server.banner is None
    assert fresh.settings.server.port == old.server.port
    assert fresh.settings.authentication == new.authentication
    assert (fresh.settings.container_pool.size, fresh.settings.container_pool.engine) == (9, "local")
    assert old.server.banner == "old"


def test_a_second_time_only_what_waits_differs() -> None:
    new = settings(server={"port": 22, "max_channels": 3})
    fresh = reload(settings(), new)
    assert reload(fresh.settings, new) == (fresh.settings, [], ["server.port"])


def test_only_settings_can_be_reloaded() -> None:
    assert set(SETTINGS) >= RELOADED
    assert {key.partition(".")[0] for key in RELOADED} == {
        "server", "authentication", "forwards", "logging", "container_pool", "analysis", "outputs", "alerts",
    }  # fmt: skip
    assert all(value_of(Settings(), key) == SETTINGS[key].default for key in RELOADED)
