"""Settings of the analysis of what is kept: hostile files are looked at, techniques are recognised."""

from collections.abc import Iterable

from pydantic import Field

from hermes.config.section import Conflict, Section
from hermes.config.values import Bytes, FilePath, Seconds


class AnalysisConfig(Section):
    """How what is kept is analysed; nothing of it can delay or lose evidence."""

    yara_rules: FilePath | None = None
    """Directory of YARA rules (`.yar`, `.yara`, also in directories below) that every kept file is matched against, besides the
    built-in ones. Another set of rules has what is kept looked at again."""
    technique_rules: FilePath | None = None
    """Directory of rules (`.yaml`) for ATT&CK techniques, besides the built-in ones; a rule with the id of a built-in one
    replaces it."""
    scan_timeout: Seconds = Field(default=20, ge=1, le=45)
    """Seconds that looking at one file may take; what takes longer is stopped, and that is its result."""
    scan_bytes: Bytes = Field(default=64 * 1024**2, ge=64 * 1024, le=2 * 1024**3)
    """Bytes from the beginning of a file that are looked at."""
    scan_memory: Bytes = Field(default=512 * 1024**2, ge=64 * 1024**2)
    """Bytes of memory that looking at one file may take, the file included."""

    def conflicts(self) -> Iterable[Conflict]:
        if self.scan_memory < 3 * self.scan_bytes:
            keys = ("analysis.scan_memory", "analysis.scan_bytes")
            yield Conflict(keys, "the memory must be at least three times the bytes that are looked at")
