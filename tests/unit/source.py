"""The source of Hermes as the tests of its structure see it."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SRC = ROOT / "src"


@cache
def modules() -> dict[str, Path]:
    """Every module under src by its dotted name."""
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        parts = path.relative_to(SRC).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text(), modules()[module].name)


def is_package(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def room(module: str) -> str:
    """The room of the house a module is in: `server` of `hermes.server.ssh`, `hermes` of the package itself."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "hermes"


def imported(module: str, node: ast.AST) -> set[str]:
    """The modules of Hermes that one statement of `module` imports."""
    if isinstance(node, ast.Import):
        names = [it.name for it in node.names]
    elif isinstance(node, ast.ImportFrom):
        package = module.split(".") if is_package(module) else module.split(".")[:-1]
        base = package[: len(package) - node.level + 1] if node.level else []
        origin = ".".join([*base, *([node.module] if node.module else [])])
        names = [f"{origin}.{it.name}" if f"{origin}.{it.name}" in modules() else origin for it in node.names]
    else:
        return set()
    return {it for it in names if it.split(".")[0] == "hermes"}
