"""What is written about Hermes is true, complete and fit for others: the references, and the shape of the tree."""

import ast
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from hermes.config import Settings, load
from hermes.config.fields import BY_ENV, SECTIONS, SETTINGS, own_settings
from hermes.config.sources import FOREIGN
from hermes.events import ALL
from hermes.metrics import CATALOGUE, Metric
from tests.unit.readings import LISTED, readings, settings_read
from tests.unit.source import ROOT, SRC, modules, tree

LONGEST_MODULE = 420
"""Lines of a module that can still be read in one sitting."""

CATALOGUES = {"hermes.events"}
"""Modules that are looked things up in, and may be longer."""

WITHOUT_TESTS = {
    "hermes.errors": "only names the errors",
    "hermes.broker.confinement": "only declares what a spawner submits to",
    "hermes.broker.engines.docker_cell": "only declares plain data",
    "hermes.broker.engines.local_cell": "only declares plain data",
    "hermes.container.messages": "only declares the messages; every test of the client and of the spawner sends them",
    "hermes.broker.engines.base": "only declares what an engine is; tests/engine/test_conformance.py holds every engine to it",
    "hermes.server.backend": "only declares plain data",
    "hermes.server.sinks.turns": "only declares plain data, and a talk that says nothing",
    "hermes.analysis.stage": "only declares what a stage is",
}
"""Modules that have no test file of their own, and why they need none."""

TESTED_BY = {
    "hermes.analysis.commands": "unit/analysis/test_counts.py",
    "hermes.analysis.documents": "unit/analysis/test_search.py",
    "hermes.analysis.query": "unit/analysis/test_search.py",
    "hermes.analysis.shell_facts": "unit/analysis/test_shell.py",
    "hermes.analysis.shell_tree": "unit/analysis/test_shell.py",
    "hermes.analysis.shell_types": "unit/analysis/test_shell.py",
    "hermes.analysis.spoken": "unit/analysis/test_search.py",
    "hermes.analysis.stats": "unit/analysis/test_counts.py",
    "hermes.analysis.sweep": "unit/analysis/test_work.py",
    "hermes.analysis.visits": "unit/analysis/test_search.py",
    "hermes.analysis.words": "unit/analysis/test_search.py",
    "hermes.cli.indexed": "unit/cli/test_search.py",
    "hermes.config.analysis": "unit/config/test_models.py",
    "hermes.confine.kernel": "unit/confine/test_process.py",
    "hermes.analysis.rules_model": "unit/analysis/test_rules_match.py",
    "hermes.broker.janitor": "e2e/test_bad_days.py",
    "hermes.evidence.findings": "unit/evidence/test_verification.py",
    "hermes.recording.facts": "unit/recording/test_lossless.py",
    "hermes.outputs.sink": "unit/outputs/test_jsonl.py",
    "hermes.store.reading": "unit/store/test_queries.py",
    "hermes.store.bookkeeping": "unit/store/test_queries.py",
    "hermes.store.database": "unit/store/test_journal.py",
    "hermes.analyst": "e2e/test_processes.py",
    "hermes.background": "e2e/test_processes.py",
    "hermes.outlet": "e2e/test_processes.py",
    "hermes.broker.engines.docker_stream": "engine/test_docker_exec.py",
    "hermes.broker.__main__": "e2e/test_main_job.py",
    "hermes.cli": "unit/test_main.py",
    "hermes.config.keeping": "unit/config/test_models.py",
    "hermes.config.section": "unit/config/test_models.py",
    "hermes.config.artifacts": "unit/config/test_models.py",
    "hermes.broker.fanotify": "engine/test_files.py",
    "hermes.broker.manifest": "unit/broker/test_trees.py",
    "hermes.testing.watching": "engine/test_files.py",
    "hermes.cli.up": "e2e/test_bad_days.py",
    "hermes.server.connection": "front/test_connections.py",
    "hermes.server.bounds": "front/test_hostile_clients.py",
    "hermes.server.channel": "front/test_hostile_clients.py",
    "hermes.server.process": "front/test_connections.py",
    "hermes.server.ssh": "front/test_connections.py",
    "hermes.server.visitor": "front/test_connections.py",
    "hermes.server.forwards": "front/test_forwards.py",
    "hermes.server.sink": "front/test_forwards.py",
    "hermes.config.forwards": "unit/config/test_models.py",
    "hermes.config.geo": "unit/config/test_models.py",
    "hermes.config.watch": "unit/config/test_models.py",
    "hermes.broker.watching": "engine/test_watcher.py",
    "hermes.broker.watcher.kernel": "engine/test_watcher.py",
    "hermes.broker.watcher.process": "engine/test_watcher.py",
    "hermes.broker.watcher.processes": "engine/test_watcher.py",
    "hermes.broker.watcher.programs": "engine/test_watcher.py",
    "hermes.server.login": "front/test_authentication.py",
    "hermes.broker.entry": "engine/test_local.py",
    "hermes.broker.verify": "hostile/test_verify.py",
    "hermes.broker.verify.alone": "hostile/test_verify_command.py",
    "hermes.broker.verify.box": "hostile/test_verify.py",
    "hermes.broker.verify.gate": "hostile/test_verify_command.py",
    "hermes.broker.verify.host": "hostile/test_verify.py",
    "hermes.broker.verify.probe": "hostile/test_verify.py",
    "hermes.broker.verify.probes.ending": "hostile/test_verify.py",
    "hermes.broker.verify.probes.files": "hostile/test_verify.py",
    "hermes.broker.verify.probes.kernel": "hostile/test_verify.py",
    "hermes.broker.verify.probes.mounts": "hostile/test_verify.py",
    "hermes.broker.verify.probes.namespaces": "hostile/test_verify.py",
    "hermes.broker.verify.probes.network": "hostile/test_verify.py",
    "hermes.broker.verify.probes.privilege": "hostile/test_verify.py",
    "hermes.broker.verify.probes.resources": "hostile/test_verify.py",
    "hermes.broker.verify.probes.surroundings": "hostile/test_verify.py",
    "hermes.broker.verify.report": "hostile/test_verify_command.py",
    "hermes.broker.verify.runner": "hostile/test_verify_command.py",
    "hermes.cli.verify": "hostile/test_verify_command.py",
    "hermes.broker.zygote_main": "unit/broker/test_zygote.py",
    "hermes.broker.zygote_process": "unit/broker/test_zygote.py",
    "hermes.broker.engines.local": "engine/test_conformance.py",
    "hermes.broker.engines.freezing": "engine/test_conformance_boxes.py",
    "hermes.broker.engines.docker": "engine/test_conformance.py",
}
"""Modules whose tests go by another name, since they are those of several."""

TEST_FOLDERS = ("engine", "front", "e2e", "hostile")
"""Where the tests of a module may lie that need more than `tests/unit` offers."""


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_docs", ROOT / "scripts" / "gen_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reference(name: str) -> str:
    return (ROOT / "docs" / "reference" / name).read_text()


# ---- references


@pytest.mark.parametrize("name", ["commands.md", "configuration.md", "events.md", "metrics.md", "verify.md"])
def test_references_are_up_to_date(name: str) -> None:
    assert reference(name) == generator().DOCUMENTS[name](), "run scripts/gen_docs.py"


def test_the_script_says_what_is_not_up_to_date(tmp_path: Path) -> None:
    copy = tmp_path / "scripts" / "gen_docs.py"
    copy.parent.mkdir()
    copy.write_text((ROOT / "scripts" / "gen_docs.py").read_text())

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(copy), *arguments], capture_output=True, text=True, timeout=60, check=False)

    stale = run("--check")
    assert (stale.returncode, stale.stderr) == (
        1,
        "not up to date: commands.md, configuration.md, events.md, metrics.md, verify.md; run scripts/gen_docs.py\n",
    )
    assert not (tmp_path / "docs").exists()
    assert run().returncode == 0
    assert run("--check").returncode == 0
    assert (tmp_path / "docs" / "reference" / "events.md").read_text() == reference("events.md")


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_is_documented(key: str) -> None:
    (row,) = [it for it in reference("configuration.md").splitlines() if it.startswith(f"| `{key}` |")]
    cells = re.split(r"(?<!\\) \| ", row.strip("| "))
    assert len(cells) == 5
    assert all(cells)
    assert cells[4] == f"`{SETTINGS[key].env}`"
    assert cells[3] == SETTINGS[key].doc.replace("|", "\\|")


def test_every_section_is_documented() -> None:
    headings = re.findall(r"^## `(.+)`$", reference("configuration.md"), re.MULTILINE)
    assert headings == list(SECTIONS)


def test_the_example_is_a_complete_configuration_that_changes_nothing(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", reference("configuration.md"), re.MULTILINE | re.DOTALL)
    (tmp_path / "example.yaml").write_text(text)
    found = load(tmp_path / "example.yaml", environ={}, cwd=tmp_path)
    assert found.settings == Settings()
    assert set(found.origins) == set(SETTINGS)
    flat = " ".join(re.sub(r"^ *# ?", "", it) for it in text.splitlines())
    for setting in SETTINGS.values():
        assert setting.doc in flat, setting.key


def test_the_commands_shown_are_right(tmp_path: Path) -> None:
    arguments = re.findall(r"--set (?:'([^']*)'|(\S*=\S*))", reference("configuration.md"))
    settings = load(overrides=["".join(it) for it in arguments if "KEY" not in it[1]], environ={}, cwd=tmp_path).settings
    assert settings.server.port == 2022
    assert settings.authentication.passwords == {"root": ("root", "123456"), "*": ("admin",), "admin": ("admin",)}
    (addresses,) = re.findall(r"HERMES_SERVER__ADDRESSES='([^']*)'", reference("configuration.md"))
    assert load(environ={"HERMES_SERVER__ADDRESSES": addresses}, cwd=tmp_path).settings.server.addresses == ("0.0.0.0", "::")


@pytest.mark.parametrize("tag", ALL)
def test_every_event_and_each_of_its_fields_is_documented(tag: str) -> None:
    match = re.search(rf"^### `{re.escape(tag)}`\n(.*?)(?=^##|\Z)", reference("events.md"), re.MULTILINE | re.DOTALL)
    assert match is not None
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", match[1], re.MULTILINE)
    assert [it[0] for it in rows] == [it for it in ALL[tag].__struct_fields__ if it not in {"connection_id", "session_id"}]
    assert all(len(meaning) > 5 for _, _, meaning in rows)


def test_no_meaning_is_of_a_field_that_is_gone() -> None:
    fields = {it for kind in ALL.values() for it in kind.__struct_fields__}
    full = {f"{tag}.{it}" for tag, kind in ALL.items() for it in kind.__struct_fields__}
    assert set(generator().MEANINGS) - fields - full == set()


def test_scripts_know_only_variables_that_hermes_knows_too() -> None:
    scripts = [it for it in tracked() if it.parent in {ROOT / "scripts", ROOT / "bench"} and it.name != "gen_docs.py"]
    named = {name for it in scripts for name in re.findall(r"HERMES_[A-Z_]*[A-Z]", it.read_text())}
    assert "HERMES_PYTHON" in named
    assert {it for it in named if it not in BY_ENV and not FOREIGN.fullmatch(it)} == set()


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda it: it.name)
def test_every_metric_and_each_of_its_labels_is_documented(metric: Metric) -> None:
    (row,) = [it for it in reference("metrics.md").splitlines() if it.startswith(f"| `{metric.name}` | {metric.kind} |")]
    assert metric.meaning in row
    assert all(f"`{label}`: " in row for label in metric.labels)


# ---- no dead settings


def test_every_setting_is_read_somewhere() -> None:
    assert set(SETTINGS) - settings_read() == set()


def test_every_setting_of_an_item_of_a_list_is_read_somewhere() -> None:
    """A setting that several kinds of items have in common need be read of their common section only."""
    read = settings_read()
    unread = {
        f"{owner}.{it.key}"
        for owner, section in LISTED.items()
        for it in own_settings(section)
        if not any(f"{base.__name__}.{it.key}" in read for base in section.__mro__) and it.key != "type"
    }
    assert LISTED
    assert unread == set()


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("def f(config: ServerConfig): return config.port", {("ServerConfig", "port")}),
        ("def f(url): return url.port", set()),
        ("def f(config: 'ServerConfig | None'): return config and config.port", {("ServerConfig", "port")}),
        ("def f(config: ServerConfig): config.port = 1", set()),
        ("class A:\n def __init__(self, s: ServerConfig): self._c = s\n def f(self): self._c.port", {("ServerConfig", "port")}),
        ("@dataclass\nclass A:\n settings: Settings\ndef f(a): return a.settings.data_dir", {("Settings", "data_dir")}),
        ("def g() -> Settings: ...\ndef f():\n s, x = g(), 1\n return s.data_dir, x.banner", {("Settings", "data_dir")}),
        ("s = Settings.model_validate_json(b'')\nprint(s.data_dir)", {("Settings", "data_dir")}),
        ("def f(s: Settings):\n def g(): return s.data_dir\n return g", {("Settings", "data_dir")}),
    ],
)  # fmt: skip
def test_a_reading_is_told_from_what_only_looks_like_one(source: str, read: set[tuple[str, str]]) -> None:
    assert readings([ast.parse(source)]) == read


# ---- the tree


@cache
def tracked() -> list[Path]:
    """Every file under version control that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    found = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    return [it for it in found if it.is_file() and b"\0" not in it.read_bytes()[:8192]]


def test_nothing_of_the_machine_it_was_made_on_is_in_the_tree() -> None:
    places = ("work", "tmp/work", "tmp/lab", r"root/\.pyenv", "home/runner", "opt/wheels", "opt/pypi[^/]*")
    machine = re.compile(rf"(?<![\w.}}])/(?:{'|'.join(places)})(?:/|$)")
    wrong = []
    for path in tracked():
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
            if machine.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}")
    assert wrong == []


def test_packages_come_from_the_public_index_only() -> None:
    hosts = set(re.findall(r"https?://([^/\"]+)", (ROOT / "uv.lock").read_text()))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}
    settings = re.compile(r"index-url|extra-index|find-links|\[\[?tool\.uv\.index|UV_INDEX|PIP_INDEX|trusted-host", re.IGNORECASE)
    wrong = [
        it.name
        for it in tracked()
        if it != Path(__file__) and it.name != "uv.lock" and settings.search(it.read_text(errors="replace"))
    ]
    assert wrong == []


def test_modules_can_be_read_in_one_sitting() -> None:
    lengths = {it: len(path.read_text().splitlines()) for it, path in modules().items() if it not in CATALOGUES}
    assert {it: length for it, length in lengths.items() if length > LONGEST_MODULE} == {}


def is_empty(module: str) -> bool:
    """The module holds nothing but a docstring, imports and plain values."""
    plain = (ast.Import, ast.ImportFrom)
    return all(
        isinstance(it, plain)
        or (isinstance(it, ast.Expr) and isinstance(it.value, ast.Constant))
        or (isinstance(it, ast.Assign) and all(isinstance(name, ast.Name) and name.id.startswith("__") for name in it.targets))
        for it in tree(module).body
    )


def files_testing(module: str) -> list[Path]:
    inside = modules()[module].relative_to(SRC / "hermes")
    package = inside.stem == "__init__"
    name = f"test_{inside.parent.name if package else inside.stem.strip('_')}.py"
    files = [ROOT / "tests" / "unit" / (inside.parent.parent if package else inside.parent) / name]
    files += [found for folder in TEST_FOLDERS for found in (ROOT / "tests" / folder).rglob(name)]
    files += [ROOT / "tests" / TESTED_BY[module]] if module in TESTED_BY else []
    return [it for it in files if it.exists()]


def test_every_module_has_its_tests() -> None:
    needed = [it for it in modules() if not is_empty(it) and it not in WITHOUT_TESTS]
    assert [it for it in needed if not files_testing(it)] == []


def test_what_needs_no_tests_is_still_there_and_still_has_none() -> None:
    assert set(WITHOUT_TESTS) | set(TESTED_BY) <= set(modules())
    assert [it for it in WITHOUT_TESTS if files_testing(it)] == []


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/design.md", "README.md"])
def test_what_is_pointed_at_is_there(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`((?:tests|docs|packaging|scripts)/[^`* ]+)`", text)) | {
        f"src/hermes/{it}"
        for it in re.findall(
            r"`((?:broker|server|container|evidence|recording|session|store|config|cli|confine)/[a-z_/]+\.py)`", text
        )
    }
    assert named
    assert [it for it in sorted(named) if not (ROOT / it).exists()] == []
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    assert [it for it in sorted(links) if not ((ROOT / name).parent / it).exists()] == []
