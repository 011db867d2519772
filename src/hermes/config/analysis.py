"""Settings of what is derived from the journal."""

from pydantic import Field

from hermes.config.section import Section
from hermes.config.values import Bytes


class AnalysisConfig(Section):
    """The index: what is derived from the journal so that it can be searched and counted. It can always be made anew."""

    enabled: bool = True
    """Keep the index up to date."""
    output_bytes: Bytes = Field(default=64 * 1024, ge=0, le=16 * 1024**2)
    """Bytes of what each channel printed, and of what was piped into it, from their beginning, that can be searched. 0: none."""
    max_bytes: Bytes = Field(default=4 * 1024**3, ge=16 * 1024**2)
    """Bytes of the index; past it, the oldest connections can no longer be searched. The journal still has them."""
