"""The operator's YARA rules and a few built-in ones: read and compiled by YARA-X, with every error named by file and line."""

from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import msgspec
import yara_x

from hermes.errors import ConfigError

MAX_FILES = 5000
MAX_BYTES = 64 * 2**20
"""Of rules, all files together."""
MAX_SHOWN = 20
"""Errors shown at most."""
BUILTIN = "hermes"
"""Namespace of the built-in rules; a file's rules have its name, without `.yar`."""


class Source(msgspec.Struct, frozen=True):
    """One file of rules."""

    namespace: str
    origin: str
    """Its path, as it stands in messages."""
    text: str


class Rules(msgspec.Struct, frozen=True):
    """Compiled rules and the fingerprint of their text: another fingerprint may find other things in the same file."""

    compiled: yara_x.Rules
    fingerprint: str
    count: int
    """Files they came from, built-in ones included."""


def load(directory: Path | None) -> Rules:
    """Compile the built-in rules and all `.yar` and `.yara` files below the directory. ConfigError lists what is wrong."""
    return compile_sources([*builtin(), *(read(directory) if directory is not None else [])])


def builtin() -> list[Source]:
    """The rules that come with Hermes."""
    found = files("hermes.analysis").joinpath("rules", "builtin.yar")
    return [Source(BUILTIN, "builtin.yar", found.read_text())]


def read(directory: Path) -> list[Source]:
    """Read the rules of a directory and those below it, in the order of their names."""
    if not directory.is_dir():
        raise ConfigError(f"analysis.yara_rules: {directory} is no directory")
    found: list[Source] = []
    total = 0
    try:
        for path in sorted(it for it in directory.rglob("*") if it.suffix in (".yar", ".yara") and it.is_file()):
            data = path.read_bytes()
            total += len(data)
            if total > MAX_BYTES or len(found) >= MAX_FILES:
                raise ConfigError(f"analysis.yara_rules: {directory} holds more than {MAX_FILES} files or {MAX_BYTES} bytes")
            namespace = path.relative_to(directory).with_suffix("").as_posix()
            found.append(Source(namespace, str(path), data.decode("utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"analysis.yara_rules: cannot read {error.filename}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"analysis.yara_rules: {path}: is not UTF-8 text") from error
    return found


def compile_sources(sources: list[Source]) -> Rules:
    """Compile all the rules together; ConfigError has a line for each error of each file."""
    compiler = yara_x.Compiler()
    compiler.enable_includes(False)
    problems: list[str] = []
    digest = sha256()
    for source in sources:
        compiler.new_namespace(source.namespace)
        try:
            compiler.add_source(source.text, origin=source.origin)
        except yara_x.CompileError as error:
            problems += [f"{source.origin}:{_where(error)}"]
        digest.update(f"{source.namespace}\0{len(source.text)}\0{source.text}".encode())
    if problems:
        told = problems[:MAX_SHOWN] + ([f"… and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else [])
        raise ConfigError("\n".join(told))
    return Rules(compiler.build(), digest.hexdigest()[:16], len(sources))


def _where(error: yara_x.CompileError) -> str:
    """`line: what`, from a message whose first lines are `error[CODE]: what` and ` --> origin:line:column`."""
    lines = str(error).split("\n")
    line = next((it.rsplit(":", 2)[1] for it in lines if it.lstrip().startswith("-->")), "1")
    detail = next((it.split("^")[-1].strip() for it in lines if "^" in it), "")
    return f"{line}: {lines[0]}" + (f" ({detail})" if detail else "")
