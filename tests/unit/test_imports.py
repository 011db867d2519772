"""The house stands: no import leads up, and none goes in a circle."""

import ast
import graphlib

import pytest

from tests.unit.source import imported, modules, room, tree

FLOORS = {
    "__main__": 5,
    "cli": 4, "web": 4, "front": 4, "analyst": 4, "outlet": 4,
    "session": 3, "evidence": 3, "analysis": 3, "outputs": 3, "background": 3, "broker": 3, "metrics": 3,
    "server": 2, "container": 2, "recording": 2, "store": 2, "geo": 2, "log": 2,
    "config": 1, "events": 1, "confine": 1, "artifacts": 1,
    "errors": 0, "clocks": 0, "tasks": 0, "hermes": 0,
}  # fmt: skip
"""The room each module is in, and its floor. A room imports from itself and from lower floors, never beside or above."""

EVERYWHERE = {"testing"}
"""Rooms that may import everything, and that nothing imports."""

ROOT_IS_NEAR = {"cli", "__main__", "testing", "broker"}
"""Who may import the code that runs as root."""


def edges() -> list[tuple[str, int, str]]:
    """Every import of one module of Hermes by another: who, in which line, whom; also those in functions and for types."""
    return [
        (module, node.lineno, target)
        for module in modules()
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in sorted(imported(module, node))
    ]


def for_types_only(module: str) -> set[int]:
    """The lines under `if TYPE_CHECKING:`."""
    return {
        node.lineno
        for block in ast.walk(tree(module))
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
        if isinstance(node, ast.stmt)
    }


def test_there_is_something_to_look_at() -> None:
    assert ("hermes.config.load", "hermes.errors") in {(module, target) for module, _, target in edges()}
    assert len(edges()) > 20


def test_every_module_is_in_a_room() -> None:
    assert {room(it) for it in modules()} <= set(FLOORS) | EVERYWHERE


def test_every_import_is_of_a_module_that_exists() -> None:
    assert [it for it in edges() if it[2] not in modules()] == []


def test_no_import_leads_up_or_beside() -> None:
    wrong = [
        f"{module}:{line} imports {target}"
        for module, line, target in edges()
        if room(module) not in EVERYWHERE and room(module) != room(target)
        if room(target) in EVERYWHERE or FLOORS[room(target)] >= FLOORS[room(module)]
    ]
    assert wrong == []


def test_rooms_and_modules_import_each_other_in_no_circle() -> None:
    rooms: dict[str, set[str]] = {}
    files: dict[str, set[str]] = {}
    for module, line, target in edges():
        if room(module) != room(target):
            rooms.setdefault(room(module), set()).add(room(target))
        if module != target and line not in for_types_only(module):
            files.setdefault(module, set()).add(target)
    for graph in (rooms, files):
        try:
            graphlib.TopologicalSorter(graph).prepare()
        except graphlib.CycleError as error:
            pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_only_the_front_door_reaches_the_code_that_runs_as_root() -> None:
    assert [it for it in edges() if room(it[2]) == "broker" and room(it[0]) not in ROOT_IS_NEAR] == []


def test_nothing_imports_what_wires_everything() -> None:
    assert [it for it in edges() if it[2] == "hermes.__main__"] == []
