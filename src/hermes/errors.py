"""Every error Hermes raises on purpose is a HermesError; anything else is a bug."""


class HermesError(Exception):
    """Base of all errors that Hermes raises on purpose. Its text is fit to show an operator on one line."""


class ConfigError(HermesError):
    """The configuration is wrong. The text names the key, the value, where it was set and what would be right."""


class MachineError(HermesError):
    """The machine lacks something Hermes needs (root, a tool, a kernel feature, a free port). The text says how to get it."""


class ImageError(HermesError):
    """A target image is missing, damaged, or could not be built."""


class EngineError(HermesError):
    """A container engine could not do what was asked of it."""


class ContainmentError(HermesError):
    """A box does not hold what an attacker can do in it. The text names the probes that failed, and why."""


class AllocationError(HermesError, RuntimeError):
    """The pool cannot give a container: it is exhausted, closing, or its engine is failing. The text says which."""


class SpawnError(HermesError):
    """A process could not be started in a container. The text is what the container's kernel said."""


class RecordingError(HermesError):
    """A recording cannot be written. The session it belongs to must end: evidence fails loudly."""


class RecordingLimitError(RecordingError):
    """A recording has come to its limit, the setting `limit` (dotted), whose value is `value`. What it holds is whole."""

    def __init__(self, text: str, *, limit: str, value: int) -> None:
        super().__init__(text)
        self.limit = limit
        self.value = value


class JournalError(HermesError):
    """The journal cannot be opened, read or written."""


class AnalysisError(HermesError):
    """The index cannot be opened, read or written, or cannot answer what was asked. The text says why."""


class GeoError(HermesError):
    """A geographic database cannot be had, or cannot be used."""
