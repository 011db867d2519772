"""`hermes up`: run the sensor."""

import os
import time

from hermes.cli.console import ConfigOption, SetOption, console, load_settings, reporting
from hermes.config import Settings


@reporting()
def up(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Run the honeypot in the foreground until Ctrl-C or SIGTERM."""
    from hermes import log
    from hermes.broker.launcher import launch

    settings = load_settings(config, overrides)
    log.configure(settings.logging, process="launcher")
    started = time.monotonic()

    def progress(line: str) -> None:
        if line == "ready":
            _welcome(settings, time.monotonic() - started)
        else:
            _say(line)

    launch(settings, progress, read_again=lambda: load_settings(config, overrides))


def _say(line: str) -> None:
    console.print(f"hermes: {line}", soft_wrap=True)


def _welcome(settings: Settings, seconds: float) -> None:
    host, port = settings.server.endpoints[0]
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    logins = [(user, secrets[0]) for user, secrets in settings.authentication.passwords.items() if secrets]
    _say(f"ready after {seconds:.1f} s: {settings.container_pool.size} warm containers, engine {settings.container_pool.engine}")
    if logins:
        user, secret = ("root" if logins[0][0] == "*" else logins[0][0]), logins[0][1]
        _say(f"log in:     ssh -p {port} {user}@{shown}   (password: {'anything' if secret == '*' else ascii(secret)[1:-1]})")
    _say(f"evidence:   {settings.recordings_dir} and {settings.journal_path}")
    _say("look at it: hermes sessions list | show ID | replay ID")
    if os.getuid() == 0 and host in ("0.0.0.0", "::"):
        _say("this sensor is open to the network")
