from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hermes.config import AuthenticationConfig, ContainerPoolConfig, RecordingConfig, SensorConfig, ServerConfig, Settings
from hermes.config.forwards import ForwardsConfig
from hermes.config.geo import GeoConfig


def reasons(model: type[Any], **values: object) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model(**values)
    return [str(it["ctx"]["reason"]) for it in caught.value.errors() if it["type"] == "conflict"]


def test_defaults_let_root_in_on_loopback_only() -> None:
    settings = Settings()
    assert settings.server.endpoints == (("127.0.0.1", 2222),)
    assert settings.authentication.passwords == {"root": ("root",)}
    assert settings.sensor.user != "root"
    assert settings.recordings_dir == Path("/var/lib/hermes/recordings")


def test_recordings_can_lie_elsewhere(tmp_path: Path) -> None:
    assert Settings(recording=RecordingConfig(enabled=True, output_dir=tmp_path)).recordings_dir == tmp_path


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.data_dir = Path("/elsewhere")  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        settings.server.port = 1  # type: ignore[misc]


def test_addresses_have_the_servers_port_or_their_own() -> None:
    server = ServerConfig(addresses=("0.0.0.0", "[::]:2200", "::"), port=22)
    assert server.endpoints == (("0.0.0.0", 22), ("::", 2200), ("::", 22))


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1", "127.0.0.1"), ("::1", "[0:0::1]:2222"), ("127.0.0.1:2222", "127.0.0.1"), ("localhost", "localhost")],
)
def test_one_address_cannot_be_listened_on_twice(addresses: tuple[str, ...]) -> None:
    (reason,) = reasons(ServerConfig, addresses=addresses)
    assert "port 2222 is there more than once" in reason


def test_an_address_that_another_takes_in_is_refused() -> None:
    assert reasons(ServerConfig, addresses=("0.0.0.0", "127.0.0.1", "::", "::1", "10.0.0.1:1")) == [
        "0.0.0.0 port 2222 already takes in 127.0.0.1",
        ":: port 2222 already takes in ::1",
    ]
    ServerConfig(addresses=("0.0.0.0", "::"))


@pytest.mark.parametrize("field", ["accept_after_failures", "accept_probability"])
def test_a_rule_on_passwords_needs_a_way_to_try_them(field: str) -> None:
    (reason,) = reasons(AuthenticationConfig, methods=("publickey",), **{field: 1})
    assert "needs 'password' or 'keyboard-interactive'" in reason
    for method in ("password", "keyboard-interactive"):
        AuthenticationConfig.model_validate({"methods": [method], field: 1})


def test_somebody_must_be_able_to_try() -> None:
    (reason,) = reasons(AuthenticationConfig, methods=())
    assert "no client could even try" in reason
    AuthenticationConfig(methods=(), accept_none=("root",))


def test_no_spawner_enters_gvisor() -> None:
    (reason,) = reasons(ContainerPoolConfig, engine="docker", runtime="runsc", docker={"entry": "spawner"})
    assert "no spawner can enter" in reason
    ContainerPoolConfig.model_validate({"engine": "docker", "runtime": "runsc", "docker": {"entry": "auto"}})


def test_every_conflict_is_told() -> None:
    assert len(reasons(AuthenticationConfig, methods=(), accept_after_failures=1, accept_probability=0.5)) == 3
    assert reasons(AuthenticationConfig, methods=("password", "password")) == ["password is there more than once"]


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (SensorConfig, {"user": "root"}),
        (SensorConfig, {"name": "a b"}),
        (ServerConfig, {"addresses": ()}),
        (ServerConfig, {"port": 0}),
        (ServerConfig, {"version": " x"}),
        (ServerConfig, {"version": "x\r\n"}),
        (ServerConfig, {"login_timeout": float("inf")}),
        (ServerConfig, {"prot": 1}),
        (AuthenticationConfig, {"passwords": {"": ("x",)}}),
        (AuthenticationConfig, {"passwords": {"root": ()}}),
        (AuthenticationConfig, {"passwords": {"root": "x"}}),
        (AuthenticationConfig, {"passwords": {"root": ("x" * 1025,)}}),
        (AuthenticationConfig, {"public_keys": {"root": ("ssh-rsa",)}}),
        (AuthenticationConfig, {"accept_probability": float("nan")}),
        (AuthenticationConfig, {"methods": ("hostbased",)}),
        (ContainerPoolConfig, {"security": {"capabilities": ("SYS_ADMIN",)}}),
        (ContainerPoolConfig, {"limits": {"memory": "1MiB"}}),
        (ContainerPoolConfig, {"limits": {"cpus": 0}}),
        (ContainerPoolConfig, {"hostname": "-x"}),
        (ContainerPoolConfig, {"hostname": "x\n"}),
        (ContainerPoolConfig, {"allocation_timeout": 0}),
        (Settings, {"data_dir": "/"}),
    ],
)
def test_impossible_values_are_refused(model: type[Any], values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        model(**values)


def test_settings_survive_the_way_to_another_process() -> None:
    settings = Settings.model_validate(
        {
            "authentication": {"passwords": {"root": ["007", "", "\x1b\x00é😀"]}, "accept_probability": 0.1},
            "server": {"login_timeout": "250ms", "banner": "a\n\x1b"},
            "container_pool": {"limits": {"memory": "1GiB"}, "security": {"seccomp_profile": "/a b"}},
            "data_dir": "/data/ü",
        }
    )
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_timeouts_can_be_switched_off() -> None:
    server = ServerConfig(login_timeout=0, idle_timeout=0, session_timeout=0)
    assert (server.login_timeout, server.idle_timeout, server.session_timeout) == (0, 0, 0)


@pytest.mark.parametrize(
    "url",
    [
        "http://registry.example", "ftp://x", "https://", "nonsense", "https://user:secret@x", "https://x/?a=b", "https://x/ y",
        "http://127.0.0.1.example",
    ],
)  # fmt: skip
def test_a_registry_is_asked_over_tls_only(url: str) -> None:
    with pytest.raises(ValidationError):
        GeoConfig(registry=url)


def test_a_registry_of_ones_own() -> None:
    assert GeoConfig().registry == "https://registry.npmjs.org"
    assert GeoConfig(registry="https://npm.example/mirror/").registry == "https://npm.example/mirror"
    assert GeoConfig(registry="http://127.0.0.1:4873").registry == "http://127.0.0.1:4873"
    with pytest.raises(ValidationError):
        GeoConfig(asn_package="../../x")


def test_forwards_are_accepted_as_real_servers_do() -> None:
    forwards = Settings().forwards
    assert (forwards.direct_tcpip, forwards.direct_streamlocal, forwards.tcpip_forward) == ("accept", "refuse", "accept")
    with pytest.raises(ValidationError):
        ForwardsConfig(refused_ports=(0,))
    with pytest.raises(ValidationError):
        ForwardsConfig(refused_hosts=("",))
