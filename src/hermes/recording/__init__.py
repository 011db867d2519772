"""What went over a channel, byte for byte, with times: written as it happens (`recorder`), read back later (`reader`)."""

from hermes.recording.recorder import SessionRecorder

__all__ = ["SessionRecorder"]
