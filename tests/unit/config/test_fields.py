import re

from hermes.config import Settings
from hermes.config.fields import BY_ENV, SECTIONS, SETTINGS, value_of


def test_the_list_has_every_setting_once() -> None:
    def leaves(schema: object, definitions: dict[str, dict[str, object]], prefix: str = "") -> list[str]:
        assert isinstance(schema, dict)
        keys = []
        for name, inner in schema["properties"].items():
            reference = inner.get("$ref") or (inner.get("allOf") or [{}])[0].get("$ref")
            if reference:
                keys += leaves(definitions[reference.rpartition("/")[2]], definitions, f"{prefix}{name}.")
            else:
                keys.append(prefix + name)
        return keys

    schema = Settings.model_json_schema()
    assert list(SETTINGS) == leaves(schema, schema["$defs"])
    assert {key.rpartition(".")[0] for key in SETTINGS} - {""} == set(SECTIONS)


def test_every_setting_has_a_meaning_and_says_what_it_wants() -> None:
    for setting in SETTINGS.values():
        assert len(setting.doc) > 10, setting.key
        assert setting.kind.wants, setting.key
    for key, section in SECTIONS.items():
        assert section.__doc__, key
        assert section.__doc__ != Settings.__mro__[1].__doc__, key


def test_what_settings_want() -> None:
    wants = {key: setting.kind.wants for key, setting in SETTINGS.items()}
    assert wants["server.port"] == "a whole number from 1 to 65535"
    assert wants["server.max_channels"] == "a whole number, at least 1"
    assert wants["server.proxy_protocol"] == "true or false"
    assert wants["server.banner"] == "text of at most 65536 characters, or null"
    assert wants["container_pool.engine"] == "one of local, docker"
    assert wants["container_pool.limits.memory"] == "a size in bytes, or such as 64k, 256MiB or 2GiB, at least 16MiB"
    assert wants["container_pool.create_timeout"] == "a duration in seconds, or such as 30s, 10m, 2h or 7d, above 0"
    assert wants["container_pool.security.seccomp_profile"] == "a path, or null"
    assert wants["server.addresses"] == "a list in [ ], each item an address to listen on, at least one"
    assert SETTINGS["authentication.passwords"].kind.item.item.wants == "a password of at most 1024 characters"


def test_environment_variables_are_told_apart() -> None:
    assert len(BY_ENV) == len(SETTINGS)
    assert SETTINGS["container_pool.limits.memory"].env == "HERMES_CONTAINER_POOL__LIMITS__MEMORY"
    assert SETTINGS["data_dir"].env == "HERMES_DATA_DIR"
    assert all(re.fullmatch(r"HERMES(_[A-Z]+)+(__[A-Z][A-Z0-9]*(_[A-Z]+)*)*", it) for it in BY_ENV)


def test_defaults_are_those_of_the_models() -> None:
    settings = Settings()
    for key, setting in SETTINGS.items():
        assert value_of(settings, key) == setting.default, key
