# ruff: noqa: E501 - a message stands on one line
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hermes.config.sources import (
    MAX_ALIASES,
    MAX_DEPTH,
    MAX_VALUES,
    Gathered,
    Place,
    name,
    read_environ,
    read_overrides,
    read_yaml,
    shown,
)


def gather(text: str = "", environ: dict[str, str] | None = None, overrides: list[str] | None = None) -> Gathered:
    gathered = Gathered()
    read_yaml(text, "hermes.yaml", gathered)
    read_environ(environ or {}, gathered)
    read_overrides(overrides or [], gathered)
    return gathered


def values(text: str) -> dict[str, object]:
    gathered = gather(text)
    assert not gathered.problems
    return {key: entry.value for key, entry in gathered.entries.items()}


def problems(text: str = "", environ: dict[str, str] | None = None, overrides: list[str] | None = None) -> list[str]:
    return [str(it) for it in gather(text, environ, overrides).problems]


# ---- YAML


def test_scalars_stay_the_text_their_author_wrote() -> None:
    text = (
        "authentication:\n  passwords:\n    root: [007, 1e3, 0x10, 2:30, 1_0, off, null, ~, 2026-01-01, 'a b', \"\\x41\", '']\n"
    )
    passwords = ["007", "1e3", "0x10", "2:30", "1_0", "off", "null", "~", "2026-01-01", "a b", "A", ""]
    assert values(text) == {"authentication.passwords": {"root": passwords}}


def test_null_is_none_only_where_nothing_is_a_value() -> None:
    assert values("server: {banner: null}") == {"server.banner": None}
    assert values("server: {banner: 'null'}") == {"server.banner": "null"}
    assert values("sensor: {name: null}") == {"sensor.name": "null"}
    assert values("sensor:\n  name:\n") == {"sensor.name": None}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null", "server:\n", "server: {}\nlogging: ~\n"])
def test_nothing_at_all_is_right(text: str) -> None:
    assert values(text) == {}


def test_every_value_has_its_place() -> None:
    entry = gather("server:\n  port: 1\n  addresses:\n    - a\n    - b\n").entries["server.addresses"]
    assert str(entry.place) == "hermes.yaml:3"
    assert [str(entry.at((index,))) for index in (0, 1, 2)] == ["hermes.yaml:4", "hermes.yaml:5", "hermes.yaml:3"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("server:\n  prot: 22", "hermes.yaml:2: unknown key server.prot; did you mean server.port?"),
        ("sever: {port: 1}", "hermes.yaml:1: unknown key sever; did you mean server?"),
        ("\nport: 22", "hermes.yaml:2: unknown key port; did you mean server.port?"),
        ("limits: {memory: 1}", "hermes.yaml:1: unknown key limits; 'hermes config schema' lists all keys"),
        ("zzz: 1", "hermes.yaml:1: unknown key zzz; 'hermes config schema' lists all keys"),
        ('"\\e[2J": 1', "hermes.yaml:1: unknown key '\\x1b[2J'; 'hermes config schema' lists all keys"),
        ("<<: {server: {port: 1}}", "hermes.yaml:1: unknown key <<; 'hermes config schema' lists all keys"),
        ("server: {port: 1}\nserver: {port: 2}", "hermes.yaml:2: server is there twice; first at hermes.yaml:1"),
        ("server:\n  port: 1\n  port: 1", "hermes.yaml:3: server.port is there twice; first at hermes.yaml:2"),
        (
            "authentication:\n  passwords:\n    root: [a]\n    root: [b]",
            "hermes.yaml:4: authentication.passwords.root is there twice; first at hermes.yaml:3",
        ),
        ("? [a]\n: b", "hermes.yaml:1: a key in the file is a list: must be text"),
        ("- a", "hermes.yaml:1: is a list: must be a mapping of settings, such as 'server: {port: 2222}'"),
        ("hello", "hermes.yaml:1: is 'hello': must be a mapping of settings, such as 'server: {port: 2222}'"),
        ("server: 5", "hermes.yaml:1: server is '5': must be a mapping of settings, such as addresses, port"),
        ("server: [5]", "hermes.yaml:1: server is a list: must be a mapping of settings, such as addresses, port"),
        ("sensor: {name: !x y}", "hermes.yaml:1: sensor.name has the tag '!x': tags mean nothing here"),
        (
            "sensor: {name: !!python/object/apply:os.system [id]}",
            "hermes.yaml:1: sensor.name has the tag 'tag:yaml.org,2002:python/object/apply:os.system': tags mean nothing here",
        ),
        (
            "a: 1\n---\nb: 2",
            "hermes.yaml:2: is not valid YAML: expected a single document in the stream, but found another document",
        ),
        (
            "server:\n\tport: 1",
            "hermes.yaml:2: is not valid YAML: while scanning for the next token, found character '\\t' that cannot start any token",
        ),
        ("sensor: {name: a\x07b}", "hermes.yaml:1: is not valid YAML: it holds the character 0x7"),
        ('sensor: {name: "\\U7fffffff"}', "hermes.yaml: is not valid YAML: it holds an impossible character"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_a_star_without_quotes_is_explained() -> None:
    (problem,) = problems("authentication:\n  passwords:\n    *: [a]\n")
    assert problem.startswith("hermes.yaml:3: is not valid YAML: ")
    assert problem.endswith("; text that begins with '*' must stand in quotes")


def test_anchors_and_aliases_work_within_bounds() -> None:
    text = "authentication:\n  passwords: {root: &it [a, b], admin: *it}\n"
    assert values(text) == {"authentication.passwords": {"root": ["a", "b"], "admin": ["a", "b"]}}
    many = ", ".join(["*it"] * (MAX_ALIASES + 1))
    assert problems(f"authentication:\n  accept_none: [&it a, {many}]\n") == [f"hermes.yaml:2: more than {MAX_ALIASES} aliases"]


def test_a_bomb_does_not_go_off() -> None:
    levels = ["a0: &a0 [" + ", ".join("x" * 9) + "]"]
    levels += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * 9) + "]" for n in range(1, 10)]
    assert all("unknown key" in it for it in problems("\n".join(levels)))
    levels[-1] = levels[-1].replace("a9: &a9", "authentication: {accept_none: ") + "}"
    assert any(f"more than {MAX_VALUES} values" in it for it in problems("\n".join(levels)))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("authentication:\n  passwords: &a {x: *a}", 2),
        ("authentication:\n  accept_none: &a [*a]", 2),
        ("server: &a\n  addresses: [*a]\n", 1),
    ],
)
def test_a_value_that_contains_itself_is_refused(text: str, line: int) -> None:
    assert problems(text) == [f"hermes.yaml:{line}: a value contains itself"]


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused(opening: str) -> None:
    assert problems(opening * 5000) == [f"hermes.yaml:1: nested more than {MAX_DEPTH} deep"]


@given(st.text(max_size=200))
def test_no_text_is_too_strange_to_be_read_or_refused(text: str) -> None:
    for problem in problems(text):
        assert problem.replace("…", "").isascii()
        assert problem.isprintable()


@given(st.text(alphabet="ab:[]{}&*!|>'\"%@`#-?,\n\t 0~<", max_size=60))
def test_no_yaml_is_too_strange_to_be_read_or_refused(text: str) -> None:
    for problem in problems("server:\n  addresses: " + text):
        assert problem.isprintable()


# ---- environment


def test_the_environment_sets_every_kind_of_setting() -> None:
    environ = {
        "HERMES_SERVER__PORT": "2022",
        "HERMES_DATA_DIR": "/data",
        "HERMES_CONTAINER_POOL__LIMITS__MEMORY": "1GiB",
        "HERMES_SERVER__ADDRESSES": "[0.0.0.0, '::']",
        "HERMES_AUTHENTICATION__PASSWORDS": "{root: [007, null], '*': ['*']}",
        "HERMES_SENSOR__NAME": "[not a list]",
        "HERMES_SERVER__BANNER": "~",
        "HERMESX": "is not ours",
        "HERMES_TEST_CACHE": "is not a setting",
        "HERMES_PYTHON": "is not a setting",
        "PATH": "/bin",
    }
    gathered = gather(environ=environ)
    assert gathered.problems == []
    assert {key: entry.value for key, entry in gathered.entries.items()} == {
        "authentication.passwords": {"root": ["007", "null"], "*": ["*"]},
        "container_pool.limits.memory": "1GiB",
        "data_dir": "/data",
        "sensor.name": "[not a list]",
        "server.addresses": ["0.0.0.0", "::"],
        "server.banner": None,
        "server.port": "2022",
    }
    assert str(gathered.entries["server.port"].place) == "HERMES_SERVER__PORT"


@pytest.mark.parametrize(
    ("variable", "text", "problem"),
    [
        ("HERMES_SERVER__PROT", "1", "HERMES_SERVER__PROT: unknown setting; did you mean HERMES_SERVER__PORT?"),
        ("HERMES_SERVER_PORT", "1", "HERMES_SERVER_PORT: unknown setting; did you mean HERMES_SERVER__PORT?"),
        ("HERMES_PYTHONS", "1", "HERMES_PYTHONS: unknown setting"),
        ("HERMES_XYZ", "1", "HERMES_XYZ: unknown setting"),
        ("HERMES_\x1b", "1", "'HERMES_\\x1b': unknown setting"),
        ("HERMES_SERVER", "{port: 1}", "HERMES_SERVER: server is a section: set its keys, such as HERMES_SERVER__ADDRESSES"),
        (
            "HERMES_AUTHENTICATION__PASSWORDS__ROOT", "[a]", "HERMES_AUTHENTICATION__PASSWORDS__ROOT: authentication.passwords is set as "
            "a whole: HERMES_AUTHENTICATION__PASSWORDS='{root: [secret]}'",
        ),
        (
            "HERMES_SERVER__ADDRESSES", "[a", "HERMES_SERVER__ADDRESSES: server.addresses is '[a': is not valid YAML: while parsing a flow "
            "sequence, expected ',' or ']', but got '<stream end>'",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_environment_is_told_by_name(variable: str, text: str, problem: str) -> None:
    assert problems(environ={variable: text}) == [problem]


# ---- --set


def test_overrides_win_and_the_last_one_most() -> None:
    gathered = gather("server: {port: 1}", {"HERMES_SERVER__PORT": "2"}, ["server.port=3", "server.port=4", "server.banner=a=b"])
    assert gathered.entries["server.port"].value == "4"
    assert str(gathered.entries["server.port"].place) == "--set server.port"
    assert gathered.entries["server.banner"].value == "a=b"


def test_one_user_can_be_added_to_those_there_are() -> None:
    gathered = gather(overrides=["authentication.passwords.admin=[a, 1]", "authentication.passwords.john.doe=[b]"])
    assert gathered.entries["authentication.passwords"].value == {"root": ["root"], "admin": ["a", "1"], "john.doe": ["b"]}
    gathered = gather("authentication: {passwords: {ubuntu: [u], root: [r]}}", overrides=["authentication.passwords.root=[x]"])
    entry = gathered.entries["authentication.passwords"]
    assert entry.value == {"ubuntu": ["u"], "root": ["x"]}
    assert [str(entry.at((user, 0))) for user in ("ubuntu", "root")] == ["hermes.yaml:1", "--set authentication.passwords.root"]


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("server.prot=1", "--set server.prot: unknown key server.prot; did you mean server.port?"),
        ("server.port", "--set server.port: must be key=value, such as server.port=2222"),
        ("=1", "--set '': unknown key ''; 'hermes config schema' lists all keys"),
        ("server={port: 1}", "--set server: server is a section: set its keys, such as server.addresses"),
        (
            "authentication.accept_none=*", "--set authentication.accept_none: authentication.accept_none is '*': is not valid YAML: while "
            "scanning an alias, expected alphabetic or numeric character, but found '\\x00'; text that begins with '*' must stand in quotes",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_after_set_is_told(argument: str, problem: str) -> None:
    assert problems(overrides=[argument]) == [problem]


# ---- messages


def test_places_sort_by_layer_then_by_line() -> None:
    places = [Place(2, 0, "--set a"), Place(1, 0, "HERMES_A"), Place(0, 10, "f"), Place(0, 9, "f")]
    assert [str(it) for it in sorted(places)] == ["f:9", "f:10", "HERMES_A", "--set a"]


@given(st.one_of(st.none(), st.text(), st.lists(st.text()), st.dictionaries(st.text(), st.text())))
def test_shown_values_are_short_and_move_no_terminal(value: object) -> None:
    text = shown(value)
    assert text.replace("…", "").isascii()
    assert text.isprintable()
    assert len(text) <= 10 * 60 + 10


def test_keys_are_named_as_they_are_written() -> None:
    assert name(("authentication", "passwords", "root", 2)) == "authentication.passwords.root[2]"
    assert name(("a", "b c", "\x1b")) == "a.'b c'.'\\x1b'"
