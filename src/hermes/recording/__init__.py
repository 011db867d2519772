"""What went over a channel, byte for byte, with times: written as it happens (`recorder`), read back later (`reader`)."""

from hermes.recording.recorder import Quota, SessionRecorder

__all__ = ["Quota", "SessionRecorder"]
