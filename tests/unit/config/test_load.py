# ruff: noqa: E501 - a message stands on one line
import importlib
import os
from pathlib import Path

import pytest

from hermes.config import Loaded, Settings, load
from hermes.config.load import MAX_PROBLEMS, SEARCHED
from hermes.config.sources import MAX_FILE
from hermes.errors import ConfigError


@pytest.fixture(autouse=True)
def _no_system_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        importlib.import_module("hermes.config.load"), "SEARCHED", (SEARCHED[0], tmp_path / "etc" / "hermes.yaml")
    )


def loaded(tmp_path: Path, text: str | None = None, overrides: tuple[str, ...] = (), **environ: str) -> Loaded:
    if text is not None:
        (tmp_path / "hermes.yaml").write_text(text)
    return load(overrides=overrides, environ=environ, cwd=tmp_path)


def refused(tmp_path: Path, text: str | None = None, overrides: tuple[str, ...] = (), **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text, overrides, **environ)
    return str(caught.value).split("\n")


# ---- where it comes from


def test_the_search_order_is_the_documented_one() -> None:
    assert (Path("hermes.yaml"), Path("/etc/hermes/hermes.yaml")) == SEARCHED


def test_without_any_file_the_defaults_hold(tmp_path: Path) -> None:
    assert loaded(tmp_path) == Loaded(Settings(), None, {})


def test_the_first_file_found_is_the_only_one_read(tmp_path: Path) -> None:
    system = tmp_path / "etc" / "hermes.yaml"
    system.parent.mkdir()
    system.write_text("server: {port: 1}\nsensor: {name: system}")
    assert (loaded(tmp_path).settings.server.port, loaded(tmp_path).path) == (1, system)
    here = loaded(tmp_path, "server: {port: 2}")
    assert (here.settings.server.port, here.settings.sensor.name, here.path) == (2, "hermes", Path("hermes.yaml"))
    (tmp_path / "my.yaml").write_text("server: {port: 3}")
    assert load(Path("my.yaml"), environ={}, cwd=tmp_path).settings.server.port == 3


def test_the_environment_wins_over_the_file_and_set_over_both(tmp_path: Path) -> None:
    text = "server:\n  port: 1\n  max_channels: 1\n  max_auth_tries: 1\n"
    found = loaded(tmp_path, text, ("server.port=3",), HERMES_SERVER__PORT="2", HERMES_SERVER__MAX_CHANNELS="2")
    server = found.settings.server
    assert (server.port, server.max_channels, server.max_auth_tries) == (3, 2, 1)
    assert found.origins == {
        "server.port": "--set server.port",
        "server.max_channels": "HERMES_SERVER__MAX_CHANNELS",
        "server.max_auth_tries": "hermes.yaml:4",
    }


def test_the_process_has_an_environment_and_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERMES_SERVER__PORT", "4242")
    (tmp_path / "hermes.yaml").write_text("sensor: {name: here}")
    found = load()
    assert (found.settings.server.port, found.settings.sensor.name) == (4242, "here")


def test_values_mean_the_same_wherever_they_are_set(tmp_path: Path) -> None:
    cases = {
        "server.login_timeout": ("10m", 600),
        "container_pool.limits.memory": ("64MiB", 64 * 2**20),
        "container_pool.limits.cpus": ("1.5", 1.5),
        "recording.enabled": ("no", False),
        "server.addresses": ("[0.0.0.0, '[::]:22']", ("0.0.0.0", "[::]:22")),
        "authentication.passwords": ("{root: [007, '']}", {"root": ("007", "")}),
        "container_pool.engine": ("docker", "docker"),
        "logging.events": ("off", "off"),
        "data_dir": ("/data", Path("/data")),
    }
    for key, (text, value) in cases.items():
        *sections, last = key.split(".")
        yaml = (
            "".join(f"{'  ' * depth}{section}:\n" for depth, section in enumerate(sections))
            + "  " * len(sections)
            + f"{last}: {text}\n"
        )
        variable = "HERMES_" + key.upper().replace(".", "__")
        for index, found in enumerate(
            (
                loaded(tmp_path, yaml),
                load(environ={variable: text}, cwd=tmp_path / "empty"),
                load(environ={}, overrides=[f"{key}={text}"], cwd=tmp_path / "empty"),
            )
        ):
            got: object = found.settings
            for part in key.split("."):
                got = getattr(got, part)
            assert got == value, (key, index)


def test_passwords_stay_the_text_they_are_written_as(tmp_path: Path) -> None:
    text = "authentication:\n  passwords:\n    root: [123456, 007, 1e3, yes, null, 12:30]\n    '*': ['*']\n"
    assert loaded(tmp_path, text).settings.authentication.passwords == {
        "root": ("123456", "007", "1e3", "yes", "null", "12:30"),
        "*": ("*",),
    }


# ---- paths


def test_relative_paths_begin_where_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "my.yaml").write_text(
        "data_dir: data\nrecording: {output_dir: ../rec}\ncontainer_pool: {security: {seccomp_profile: s.json}}"
    )
    settings = load(Path("conf/my.yaml"), environ={}, cwd=tmp_path).settings
    assert settings.data_dir == tmp_path / "conf" / "data"
    assert settings.recordings_dir == tmp_path / "rec"
    assert settings.container_pool.security.seccomp_profile == tmp_path / "conf" / "s.json"
    settings = load(
        Path("conf/my.yaml"), environ={"HERMES_DATA_DIR": "data"}, overrides=["recording.output_dir=rec"], cwd=tmp_path
    ).settings
    assert (settings.data_dir, settings.recordings_dir) == (tmp_path / "data", tmp_path / "rec")


def test_home_directories_are_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert loaded(tmp_path, "data_dir: ~/data").settings.data_dir == Path("/home/someone/data")


# ---- what cannot be read


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^no\.yaml: there is no such file$"):
        load(Path("no.yaml"), environ={}, cwd=tmp_path)


def test_what_cannot_be_read_is_no_missing_file(tmp_path: Path) -> None:
    (tmp_path / "hermes.yaml").mkdir()
    assert refused(tmp_path) == ["hermes.yaml: cannot be read: Is a directory"]


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    Path("hermes.yaml").write_text("")
    Path("hermes.yaml").chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        with pytest.raises(ConfigError, match=r"^hermes\.yaml: cannot be read: Permission denied$"):
            load(environ={}, cwd=Path())
    finally:
        os.seteuid(user)


def test_a_path_with_a_nul(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: embedded null byte"):
        load(Path("a\0b"), environ={}, cwd=tmp_path)


def test_what_is_no_text_or_too_long_is_refused(tmp_path: Path) -> None:
    (tmp_path / "hermes.yaml").write_bytes(b"sensor:\n  name: \xff\n")
    assert refused(tmp_path) == ["hermes.yaml:2: is not UTF-8 text"]
    (tmp_path / "hermes.yaml").write_bytes(b"#" * (MAX_FILE + 1))
    assert refused(tmp_path) == [f"hermes.yaml: is longer than {MAX_FILE} bytes"]


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    (tmp_path / "hermes.yaml").write_bytes(b"\xef\xbb\xbfserver: {port: 5}")
    assert loaded(tmp_path).settings.server.port == 5


# ---- what is wrong


def test_every_problem_is_told_in_the_order_of_its_place(tmp_path: Path) -> None:
    text = "server:\n  prot: 22\n  port: abc\n  port: 5\nport: 5\nsensor: 12\nrecording: {enabled: maybe}\ncontainer_pool:\n  limits: {memory: 1k}\n"
    assert refused(tmp_path, text, ("server.por=1", "data_dir=/"), HERMES_SERVER__MAX_CHANNELS="0", HERMES_NONE="") == [
        "hermes.yaml:2: unknown key server.prot; did you mean server.port?",
        "hermes.yaml:3: server.port is 'abc': must be a whole number from 1 to 65535",
        "hermes.yaml:4: server.port is there twice; first at hermes.yaml:3",
        "hermes.yaml:5: unknown key port; did you mean server.port?",
        "hermes.yaml:6: sensor is '12': must be a mapping of settings, such as name, user",
        "hermes.yaml:7: recording.enabled is 'maybe': must be true or false",
        "hermes.yaml:9: container_pool.limits.memory is '1k': must be a size in bytes, or such as 64k, 256MiB or 2GiB, at least 16MiB",
        "HERMES_NONE: unknown setting",
        "HERMES_SERVER__MAX_CHANNELS: server.max_channels is '0': must be a whole number, at least 1",
        "--set server.por: unknown key server.por; did you mean server.port?",
        "--set data_dir: data_dir is '/': must be a directory of Hermes' own",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server: {port: 70000}", "server.port is '70000': must be a whole number from 1 to 65535"),
        ("server: {port: true}", "server.port is 'true': must be a whole number from 1 to 65535"),
        ("server: {port: 22.5}", "server.port is '22.5': must be a whole number from 1 to 65535"),
        ("server: {port: [22]}", "server.port is ['22']: must be a whole number from 1 to 65535"),
        ("server: {port: }", "server.port is empty: must be a whole number from 1 to 65535"),
        ("server: {port: '9999999999999999999999'}", "server.port is '9999999999999999999999': must be a whole number from 1 to 65535"),
        ("sensor: {name: [a]}", "sensor.name is ['a']: must be 1 to 64 letters, digits, '.', '_' or '-'"),
        ("sensor: {name: {a: b}}", "sensor.name is a mapping: must be 1 to 64 letters, digits, '.', '_' or '-'"),
        ("server: {addresses: 0.0.0.0}", "server.addresses is '0.0.0.0': must be a list in [ ], each item an address to listen on, at least one"),
        ("server: {addresses: []}", "server.addresses is []: must be a list in [ ], each item an address to listen on, at least one"),
        ("server: {addresses: [a, '1.2.3.4:x']}", "server.addresses[1] is '1.2.3.4:x': must have a port from 1 to 65535 after the address"),
        ("server: {login_timeout: soon}", "server.login_timeout is 'soon': must be a duration in seconds, or such as 30s, 10m, 2h or 7d"),
        ("container_pool: {limits: {cpus: nan}}", "container_pool.limits.cpus is 'nan': must be a number from 0.01 to 4096"),
        ("container_pool: {engine: podman}", "container_pool.engine is 'podman': must be one of local, docker"),
        ("container_pool: {docker: {host: x}}", "container_pool.docker.host is 'x': must be unix:///path or tcp://host:port"),
        ("authentication: {passwords: [a]}", "authentication.passwords is ['a']: must be a mapping in { } of user names to lists, each item a "
         "password of at most 1024 characters"),
        ("authentication: {passwords: {root: a}}", "authentication.passwords.root is 'a': must be a list in [ ], each item a password of at most "
         "1024 characters, at least one"),
        ("authentication: {passwords: {root: [[a]]}}", "authentication.passwords.root[0] is ['a']: must be a password of at most 1024 characters"),
        ("authentication: {passwords: {'': [a]}}", "authentication.passwords has the key '': must be '*' for any user, or a user name that can "
         "exist: 1 to 32 characters, no space, ':', '/', ',' or '*', no '-' in front"),
        ("authentication: {methods: [hostbased]}", "authentication.methods[0] is 'hostbased': must be one of publickey, password, "
         "keyboard-interactive"),
        ("authentication: {public_keys: {root: [ssh-rsa AAAA]}}", "authentication.public_keys.root[0] is 'ssh-rsa AAAA': the base64 part holds no "
         "ssh-rsa key; it may have been cut"),
        ("container_pool: {security: {capabilities: [CAP_CHOWN]}}", "container_pool.security.capabilities[0] is 'CAP_CHOWN': must be written CHOWN"),
        ("sensor: {user: root}", "sensor.user is 'root': the front must run as an unprivileged user, such as hermes"),
        ("recording: {output_dir: ''}", "recording.output_dir is '': must be a path of printable characters"),
        ("authentication: {accept_after_failures: 3, methods: [publickey]}", "authentication.accept_after_failures is '3': needs 'password' or "
         "'keyboard-interactive' in authentication.methods, or no client can try a password"),
        ("server: {addresses: ['0.0.0.0', '0.0.0.0:2222']}", "server.addresses is ['0.0.0.0', '0.0.0.0:2222']: 0.0.0.0 port 2222 is there more "
         "than once"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_would_be_right(tmp_path: Path, text: str, problem: str) -> None:
    assert refused(tmp_path, text) == [f"hermes.yaml:1: {problem}"]


def test_space_around_what_is_no_text_means_nothing(tmp_path: Path) -> None:
    found = loaded(tmp_path, "", ("server.port= 5 ",), HERMES_RECORDING__ENABLED=" no\n", HERMES_SERVER__BANNER=" hi ")
    assert (found.settings.server.port, found.settings.recording.enabled, found.settings.server.banner) == (5, False, " hi ")


def test_settings_that_exclude_each_other_are_told_where_they_were_set(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, "authentication:\n  methods: [publickey]\n", HERMES_AUTHENTICATION__ACCEPT_PROBABILITY="0.5")
    assert problem.startswith(
        "HERMES_AUTHENTICATION__ACCEPT_PROBABILITY: authentication.accept_probability is '0.5': needs 'password'"
    )
    (problem,) = refused(tmp_path, "", ("server.port=22", "server.addresses=[0.0.0.0, '0.0.0.0:22']"))
    assert problem.startswith("--set server.addresses: server.addresses is ")
    (problem,) = refused(tmp_path, "", ("authentication.methods=[]",))
    assert problem.startswith("--set authentication.methods: authentication.methods is []: offers nothing")


def test_items_have_lines_of_their_own(tmp_path: Path) -> None:
    text = "authentication:\n  passwords:\n    root:\n      - a\n      - [b]\n    a b: [c]\n"
    first, second = refused(tmp_path, text)
    assert first.startswith("hermes.yaml:5: authentication.passwords.root[1] is ['b']: ")
    assert second.startswith("hermes.yaml:6: authentication.passwords has the key 'a b': ")


def test_what_is_shown_of_a_value_moves_no_terminal_and_is_short(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, 'server: {port: "\\e]0;x\\a\\n\\u202e' + "y" * 5000 + '"}')
    assert problem.isprintable()
    assert "'\\x1b]0;x\\x07\\n\\u202eyyy" in problem
    assert len(problem) < 200


def test_problems_beyond_bearing_are_counted(tmp_path: Path) -> None:
    lines = refused(tmp_path, "".join(f"zz{number}: 1\n" for number in range(MAX_PROBLEMS + 7)))
    assert len(lines) == MAX_PROBLEMS + 1
    assert lines[-1] == "… and 7 more"
