"""Settings of what is derived from the journal, and of what looks at attackers' files."""

from collections.abc import Iterable

from pydantic import Field

from hermes.config.section import Conflict, Section
from hermes.config.values import Bytes, FilePath, Seconds


class AnalysisConfig(Section):
    """The index: what is derived from the journal so that it can be searched and counted. It can always be made anew."""

    enabled: bool = True
    """Keep the index up to date."""
    output_bytes: Bytes = Field(default=64 * 1024, ge=0, le=16 * 1024**2)
    """Bytes of what each channel printed, and of what was piped into it, from their beginning, that can be searched. 0: none."""
    max_bytes: Bytes = Field(default=4 * 1024**3, ge=16 * 1024**2)
    """Bytes of the index; past it, the oldest connections can no longer be searched. The journal still has them."""
    yara_rules: FilePath | None = None
    """Directory of YARA rules (`.yar`, `.yara`, also in directories below) that every kept file is matched against, besides the
    built-in ones. When the rules have changed, what is kept is looked at again."""
    technique_rules: FilePath | None = None
    """Directory of rules (`.yaml`) for ATT&CK techniques, besides the built-in ones; a rule with the id of a built-in one
    replaces it."""
    scan_timeout: Seconds = Field(default=10, ge=1, le=25)
    """Seconds that looking at one file may take; what takes longer is stopped, and that is its result."""
    scan_bytes: Bytes = Field(default=64 * 1024**2, ge=64 * 1024, le=1024**3)
    """Bytes from the beginning of a file that are looked at."""
    scan_memory: Bytes = Field(default=512 * 1024**2, ge=64 * 1024**2)
    """Bytes of memory that looking at one file may take, the file included."""

    def conflicts(self) -> Iterable[Conflict]:
        if self.scan_memory < 3 * self.scan_bytes:
            keys = ("analysis.scan_memory", "analysis.scan_bytes")
            yield Conflict(keys, "the memory must be at least three times the bytes that are looked at")
