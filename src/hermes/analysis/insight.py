"""What the analyst needs of rules and of the scanner: got ready while it may still read an operator's files and fork."""

from collections.abc import Callable, Sequence
from typing import BinaryIO

from hermes.analysis import rules_match, yara
from hermes.analysis.campaigns import Campaigns
from hermes.analysis.looking import Looker
from hermes.analysis.scanner import Limits, Scanner
from hermes.analysis.scans import Scans
from hermes.analysis.stage import Stage
from hermes.analysis.techniques import Techniques
from hermes.config import Settings
from hermes.config.analysis import AnalysisConfig
from hermes.errors import ConfigError


class Insight:
    """Made by the analyst's process; `prepare` before it gives up its power, `stages` after."""

    def __init__(self, content: Callable[[Settings, str, Sequence[tuple[str, int]]], BinaryIO]) -> None:
        """`content` opens a content by its SHA-256, given the channels whose input it was (sessions' ids and their numbers)."""
        self._content = content
        self._scanner: Scanner | None = None
        self._stages: list[Stage] = []

    def prepare(self, settings: Settings, look_filter: bytes) -> None:
        """Read the rules and fork the scanner. Raises ConfigError, in one line, and MachineError."""
        analysis = settings.analysis
        if not analysis.enabled:
            return
        try:
            signatures, rules = yara.load(analysis.yara_rules), rules_match.load(analysis.technique_rules)
        except ConfigError as error:
            raise ConfigError("; ".join(str(error).split("\n"))) from error
        self._scanner = Scanner(
            Looker(signatures.compiled, most=analysis.scan_bytes),
            user=settings.sensor.user,
            program=look_filter,
            limits=Limits(seconds=analysis.scan_timeout, memory=analysis.scan_memory),
        )
        techniques, campaigns = Techniques(rules), Campaigns()
        scans = Scans(
            self._scanner,
            lambda sha256, inputs: self._content(settings, sha256, inputs),
            rules=signatures.fingerprint,
            on_scanned=(techniques.scanned, campaigns.scanned),
        )
        self._stages = [scans, techniques, campaigns]

    def close(self) -> None:
        """End the scanner."""
        if self._scanner is not None:
            self._scanner.close()

    def stages(self) -> list[Stage]:
        """The stages, in their order; none where the analysis is turned off."""
        return self._stages


def check(analysis: AnalysisConfig) -> None:
    """Raise a ConfigError with everything that is wrong with an operator's rules, a line each."""
    yara.load(analysis.yara_rules)
    rules_match.load(analysis.technique_rules)
