"""The simple commands of a text of shell, found with tree-sitter-bash, valid or not. Nothing is expanded or run.

tree-sitter takes long for some texts (a pipeline of thousands of commands: seconds), hence the limits.
"""

import re
import time
from collections.abc import Iterator
from itertools import pairwise

import tree_sitter_bash
from tree_sitter import Language, Node, Parser

from hermes.analysis import shell_facts
from hermes.analysis.shell_types import SHELLS, Command, Redirect, base

MAX_BYTES = 16 * 1024
"""Bytes of one text whose structure is looked at."""
MAX_PIPES = 500
MAX_NODES = 20_000
MAX_COMMANDS = 500
MAX_WORD = 8192
MAX_DEPTH = 100
"""Structures within each other that are looked into."""
MAX_NESTED = 3
"""Levels of text within text, as in `sh -c "sh -c '…'"`."""
PARSE_SECONDS = 0.2
"""For one text with all that is nested in it; tree-sitter may take three times as long before it can be stopped."""

_LANGUAGE = Language(tree_sitter_bash.language())
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "e": "\x1b", "E": "\x1b", "f": "\f", "v": "\v"}
_ANSI_C = re.compile(r"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|u([0-9a-fA-F]{1,4})|(.))", re.DOTALL)
_COMMANDS = frozenset({"command", "declaration_command", "unset_command"})
_STATEMENTS = frozenset({"program", "list", "variable_assignments", "do_group", "compound_statement", "subshell"})
_WORDS = frozenset(
    {
        "word", "string", "raw_string", "ansi_c_string", "translated_string", "concatenation", "simple_expansion", "expansion",
        "command_substitution", "process_substitution", "arithmetic_expansion", "number", "brace_expression", "command_name",
        "string_content", "regex", "test_operator", "extglob_pattern", "variable_name", "special_variable_name",
    }
)  # fmt: skip


class Reading:
    """One text being read, with the texts within it."""

    def __init__(self) -> None:
        self.commands: list[Command] = []
        self.decoded: list[str] = []
        self.clean = True
        self.truncated = False
        self._nodes = 0
        self._pipelines = 0
        self._deadline = time.monotonic() + PARSE_SECONDS

    def read(self, text: str, nested: int = 0) -> None:
        """Take in a text, and what it gives to shells."""
        source = text.encode(errors="replace").replace(b"\0", b" ")
        if len(source) > MAX_BYTES or source.count(b"|") > MAX_PIPES:
            self.truncated = True
            source = source[:MAX_BYTES] if source[:MAX_BYTES].count(b"|") <= MAX_PIPES else b""
        if not source.strip():
            return
        root = _tree(source, self._deadline)
        if root is None:
            self.clean, self.truncated = False, True
            return
        self.clean &= not root.has_error
        first = len(self.commands)
        self._walk(root, source, nested)
        if nested < MAX_NESTED:
            for inner in list(self._inner(self.commands[first:])):
                self.read(inner, nested + 1)

    def _walk(self, root: Node, source: bytes, nested: int) -> None:
        """Find the simple commands below a node, in their order; without recursion, for structures can be deep."""
        stack: list[tuple[Node, int, int, tuple[Redirect, ...]]] = [(root, 0, 0, ())]
        while stack:
            node, depth, pipeline, redirects = stack.pop()
            self._nodes += 1
            if self._nodes > MAX_NODES or len(self.commands) >= MAX_COMMANDS or time.monotonic() > self._deadline:
                self.truncated = True
                return
            if depth > MAX_DEPTH:
                self.truncated = True
                continue
            kind = node.type
            if kind == "pipeline" and not pipeline:
                self._pipelines += 1
                pipeline = self._pipelines
            elif kind == "redirected_statement":
                redirects += tuple(self._redirect(child, source) for child in node.children_by_field_name("redirect"))
            elif kind in _COMMANDS:
                self._command(node, source, pipeline, redirects, nested)
                redirects = ()
            elif kind == "variable_assignment" and depth and (above := node.parent) is not None and above.type in _STATEMENTS:
                self.commands.append(Command("", assignments=(self._text(node, source),), pipeline=pipeline, nested=nested))
            # Of `a && b > file` and `a | b > file`, the grammar says that the whole is redirected; it is the last command.
            last = node.named_children[-1] if kind in ("pipeline", "list") and node.named_child_count else None
            inside = 0 if kind == "command_substitution" else pipeline
            stack += [
                (child, depth + 1, inside, redirects if last is None or child == last else ())
                for child in reversed(node.children)
                if child.child_count
            ]

    def _command(self, node: Node, source: bytes, pipeline: int, redirects: tuple[Redirect, ...], nested: int) -> None:
        name, own = "", list(redirects)
        words: list[str] = []
        assignments: list[str] = []
        if node.type != "command":  # `export`, `unset`, … are words of the grammar
            name = self._text(node.children[0], source) if node.children else ""
        for child in node.children:
            kind = child.type
            if kind == "command_name":
                name = self._word(child, source)
            elif kind == "variable_assignment":
                (words if node.type != "command" else assignments).append(self._text(child, source))
            elif kind in ("file_redirect", "herestring_redirect", "heredoc_redirect"):
                own.append(self._redirect(child, source))
            elif kind in _WORDS:
                words.append(self._word(child, source))
        self.commands.append(Command(name, tuple(words), tuple(own), tuple(assignments), pipeline=pipeline, nested=nested))

    def _redirect(self, node: Node, source: bytes) -> Redirect:
        descriptor, operator, target = "", "", ""
        for child in node.children:
            if child.type == "file_descriptor":
                descriptor = self._text(child, source)
            elif child.type == "heredoc_body":
                target = self._text(child, source)
            elif child.type in _WORDS:
                target = self._word(child, source)
            elif not child.is_named and not operator:
                operator = self._text(child, source)
        return Redirect(operator, target, descriptor)

    def _text(self, node: Node, source: bytes) -> str:
        return source[node.start_byte : node.end_byte][:MAX_WORD].decode(errors="replace")

    def _word(self, node: Node, source: bytes, depth: int = 0) -> str:
        """A word without its quotes and backslashes."""
        kind = node.type
        if kind in ("command_name", "concatenation", "translated_string") and depth < MAX_DEPTH:
            if not node.children:
                return _unescaped(self._text(node, source))
            return "".join(self._word(child, source, depth + 1) for child in node.children[:1000])[:MAX_WORD]
        text = self._text(node, source)
        if kind == "string":
            return re.sub(r'\\([$`"\\])', r"\1", text.removeprefix('"').removesuffix('"')).replace("\\\n", "")
        if kind == "raw_string":
            return text.removeprefix("'").removesuffix("'")
        if kind == "ansi_c_string":
            return _ANSI_C.sub(_ansi, text.removeprefix("$'").removesuffix("'"))
        return _unescaped(text) if kind == "word" else text

    def _inner(self, commands: list[Command]) -> Iterator[str]:
        """Texts that the commands give to a shell, directly or in base64."""
        for command in commands:
            name, arguments = command.plain()
            if name in SHELLS:
                for flag, argument in pairwise(arguments):
                    if re.fullmatch(r"-[a-z]*c", flag):
                        yield argument
                        break
            elif name == "eval":
                yield " ".join(arguments)
            elif name == "su" and "-c" in arguments[:-1]:
                yield arguments[arguments.index("-c") + 1]
            if name in SHELLS:
                yield from (it.target for it in command.redirects if it.operator.startswith("<<"))
        if any(base(it.plain()[0]) in ("base64", "openssl") for it in commands):
            for command in commands:
                for word in (*command.arguments, *(it.target for it in command.redirects)):
                    if (text := shell_facts.from_base64(word)) is not None and text not in self.decoded:
                        self.decoded.append(text)
                        yield text


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text.replace("\\\n", ""), flags=re.DOTALL) if "\\" in text else text


def _ansi(match: re.Match[str]) -> str:
    hexadecimal, octal, unicode, letter = match.groups()
    if letter is not None:
        return _ESCAPES.get(letter, letter)
    code = int(hexadecimal or unicode, 16) if hexadecimal or unicode else int(octal, 8) & 0xFF
    return chr(code) if not 0xD800 <= code < 0xE000 else "\ufffd"


def _tree(source: bytes, deadline: float) -> Node | None:
    """The root of the syntax tree; None where it cannot be made in time."""

    def piece(offset: int, _point: object) -> bytes:
        return source[offset : offset + 4096]

    parser = Parser(_LANGUAGE)
    try:
        tree = parser.parse(piece, progress_callback=lambda _offset, _error: time.monotonic() > deadline)
    except ValueError:  # it was told to stop
        return None
    return None if tree is None else tree.root_node
