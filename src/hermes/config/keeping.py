"""Settings of what is recorded, and of how long evidence is kept."""

from pydantic import Field

from hermes.config.section import Section
from hermes.config.values import Bytes, FilePath, Seconds


class RecordingConfig(Section):
    """Recordings: one asciicast v2 file and one lossless file a channel."""

    enabled: bool = True
    """Record what goes over every channel."""
    output_dir: FilePath | None = None
    """Where recordings go; `recordings` under `data_dir` by default."""
    max_channel_bytes: Bytes = Field(default=1024**3, ge=64 * 1024)
    """Bytes that the recordings of one channel may take, both files together; at the limit the session ends."""
    max_session_bytes: Bytes = Field(default=4 * 1024**3, ge=64 * 1024)
    """Bytes that the recordings of one session may take, all its channels together; at the limit it ends."""


class EvidenceConfig(Section):
    """How much evidence is kept, and for how long. The oldest and least valuable goes first, what is under way never."""

    max_bytes: Bytes = Field(default=20 * 1024**3, ge=1024**2)
    """Bytes on disk of all recordings together."""
    max_journal_bytes: Bytes = Field(default=4 * 1024**3, ge=1024**2)
    """Bytes of the journal."""
    max_lines_bytes: Bytes = Field(default=1024**3, ge=0)
    """Bytes of the file of JSON lines and of the full ones beside it; it is put aside at a quarter of that. 0: never."""
    max_age: Seconds = 365 * 86400
    """Seconds that evidence is kept at most; 0 for no limit."""
    min_free: Bytes = 512 * 1024**2
    """Bytes to keep free on the file systems of recordings and journal. Below, evidence is removed first; if that is not enough,
    no new connection is taken until there is room again. 0 turns it off."""
