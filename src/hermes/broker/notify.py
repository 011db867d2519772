"""What systemd wants to know of a service of `Type=notify` (sd_notify(3)); without systemd, nothing is said."""

import os
import socket
import time
from collections.abc import Mapping


class ServiceManager:
    """The service manager that started this process, if one did. Never raises: a supervisor that is gone is no reason to end."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        meant_for = environ.get("WATCHDOG_PID", "")
        usec = environ.get("WATCHDOG_USEC", "") if meant_for in ("", str(os.getpid())) else ""
        self.watchdog = int(usec) / 1e6 if usec.isdecimal() and self._address else 0.0
        """Seconds of silence after which it kills this process; 0: never."""

    def status(self, text: str) -> None:
        """One line that `systemctl status` shows."""
        self._say(f"STATUS={text}")

    def ready(self) -> None:
        """The service does what it is for; also after `reloading`."""
        self._say("READY=1")

    def reloading(self) -> None:
        """The configuration is being read again."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """The service is ending."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The event loop runs."""
        self._say("WATCHDOG=1")

    def _say(self, message: str) -> None:
        if not self._address.startswith(("/", "@")):
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message.replace("\0", " ").encode(errors="replace"), address)
        except OSError:
            return
