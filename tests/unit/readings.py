"""Which settings the source reads: a small inference of types, just enough to tell `server.port` from any other `port`.

A name, parameter, attribute or function is known to hold a section of the settings when it is annotated so, or is given
something that is known to. What is read of it is then a setting read. Attributes are known by their name alone.
"""

import ast
import typing
from collections.abc import Iterator

from hermes.config import outputs
from hermes.config.fields import SECTIONS, SETTINGS, own_settings
from hermes.config.models import Settings
from hermes.config.section import Section
from tests.unit.source import modules, room, tree

LISTED: dict[str, type[Section]] = {
    section.__name__: section for setting in SETTINGS.values() for section in setting.kind.sections.values()
}
"""Sections that are items of lists."""
BASES: dict[str, type[Section]] = {
    it.__name__: it for section in LISTED.values() for it in section.__mro__[1:] if issubclass(it, Section) and it != Section
}
UNIONS = {"Output": outputs.Output}
"""Other names of several of them."""
CLASSES: dict[str, type[Section]] = {it.__name__: it for it in SECTIONS.values()} | {"Settings": Settings} | LISTED | BASES
KEYS = {(setting.section.__name__, key.rpartition(".")[2]): key for key, setting in SETTINGS.items()} | {
    (owner, it.key): f"{owner}.{it.key}" for owner, section in (LISTED | BASES).items() for it in own_settings(section)
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Names = dict[str, set[str]]


def annotated(annotation: ast.expr | None) -> set[str]:
    """The sections that an annotation names."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    names = {
        it.id if isinstance(it, ast.Name) else it.attr
        for it in ast.walk(annotation or ast.Pass())
        if isinstance(it, ast.Name | ast.Attribute)
    }
    return names & set(CLASSES) | {it.__name__ for name in names & set(UNIONS) for it in typing.get_args(UNIONS[name])}


class Readings:
    """What is known of the source, and the settings (or properties of sections) read in it: section and name."""

    def __init__(self) -> None:
        self.attributes: Names = {}
        self.functions: Names = {}
        self.read: set[tuple[str, str]] = set()

    def size(self) -> int:
        return len(self.read) + sum(len(it) for it in [*self.attributes.values(), *self.functions.values()])

    def kinds(self, node: ast.expr | None, names: Names) -> set[str]:
        """The sections an expression may be."""
        match node:
            case ast.Name(id=name):
                return names.get(name, set())
            case ast.Attribute(value=base, attr=name):
                known = self.kinds(base, names)
                inner = {CLASSES[it].model_fields[name].annotation for it in known if name in CLASSES[it].model_fields}
                found = {it.__name__ for it in inner if isinstance(it, type) and it.__name__ in CLASSES}
                return found if known else self.attributes.get(name, set())
            case ast.Call(func=ast.Name(id=name)):
                return {name} if name in CLASSES else self.functions.get(name, set())
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)) if owner in CLASSES and name.startswith(
                "model_"
            ):
                return {owner}
            case ast.Call(func=ast.Attribute(attr=name)):
                return self.functions.get(name, set())
            case ast.Await(value=inner) | ast.NamedExpr(value=inner):
                return self.kinds(inner, names)
            case ast.IfExp(body=one, orelse=other):
                return self.kinds(one, names) | self.kinds(other, names)
            case ast.BoolOp(values=values):
                return set[str]().union(*(self.kinds(it, names) for it in values))
        return set()

    def learn(self, target: ast.expr, kinds: set[str], names: Names) -> None:
        if isinstance(target, ast.Name):
            names[target.id] = names.get(target.id, set()) | kinds
        elif isinstance(target, ast.Attribute) and kinds:
            self.attributes[target.attr] = self.attributes.get(target.attr, set()) | kinds

    def scope(self, owner: ast.AST, names: Names) -> None:
        """Take in one scope: its names, what it reads, and the scopes inside it."""
        if isinstance(owner, Function):
            arguments = owner.args
            for it in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
                names[it.arg] = annotated(it.annotation)
            if kinds := annotated(owner.returns):
                self.functions[owner.name] = self.functions.get(owner.name, set()) | kinds
        inside = list(within(owner))
        for _ in range(2):
            for node in inside:
                self.statement(node, owner, names)
        for node in inside:
            if isinstance(node, Function | ast.ClassDef | ast.Lambda):
                self.scope(node, dict(names))

    def statement(self, node: ast.AST, owner: ast.AST, names: Names) -> None:
        match node:
            case ast.AnnAssign(target=target, annotation=annotation):
                self.learn(target, annotated(annotation), names)
                if isinstance(owner, ast.ClassDef) and isinstance(target, ast.Name):
                    self.learn(ast.Attribute(ast.Name("self"), target.id), annotated(annotation), names)
            case ast.Assign(targets=targets, value=value):
                for it in targets:
                    pairs = (
                        zip(it.elts, value.elts, strict=False)
                        if isinstance(it, ast.Tuple) and isinstance(value, ast.Tuple)
                        else [(it, value)]
                    )
                    for one, its in pairs:
                        self.learn(one, self.kinds(its, names), names)
            case ast.NamedExpr(target=target, value=value):
                self.learn(target, self.kinds(value, names), names)
            case ast.Attribute(value=base, attr=name, ctx=ast.Load()):
                self.read |= {(it, name) for it in self.kinds(base, names)}


def within(owner: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a scope, without those of the scopes inside it (but with those scopes themselves)."""
    for node in ast.iter_child_nodes(owner):
        yield node
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield from within(node)


def readings(trees: list[ast.Module]) -> set[tuple[str, str]]:
    """The fields and properties of sections read in these modules: (`ServerConfig`, `port`)."""
    found = Readings()
    before = -1
    while before != found.size():
        before = found.size()
        for it in trees:
            found.scope(it, {})
    return found.read


def properties() -> dict[tuple[str, str], set[tuple[str, str]]]:
    """What each property of a section reads."""
    found = {}
    for owner in (it for name in modules() if room(name) == "config" for it in ast.walk(tree(name))):
        if isinstance(owner, ast.ClassDef) and owner.name in CLASSES:
            for method in owner.body:
                if isinstance(method, ast.FunctionDef) and any(
                    isinstance(it, ast.Name) and it.id == "property" for it in method.decorator_list
                ):
                    reading = Readings()
                    reading.statement(method, owner, {})
                    for node in within(method):
                        reading.statement(node, method, {"self": {owner.name}})
                    found[(owner.name, method.name)] = reading.read
    return found


def settings_read() -> set[str]:
    """The keys of all settings that something outside the room `config` reads."""
    read = readings([tree(it) for it in modules() if room(it) not in {"config", "testing"}])
    for name, inner in properties().items():
        if name in read:
            read |= inner
    return {KEYS[it] for it in read if it in KEYS}
