"""STIX 2.1: a session or a campaign as a bundle that other tools of threat intelligence take in.

Every identifier is made from what it names (UUID version 5), and every time is one of the journal: the same evidence gives the
same bundle, and what two bundles have in common has the same identifier in both.
"""

import contextlib
import encodings.utf_16_be  # noqa: F401  stix2 imports this, and the next, with the first pattern: out of reach by then
import ipaddress
import json
import re
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import antlr4.LL1Analyzer  # type: ignore[import-untyped]  # noqa: F401
import stix2.v21 as stix  # type: ignore[import-untyped]

from hermes import events
from hermes.analysis.findings import Campaign, File, Finding, Return
from hermes.analysis.rules_match import Technique
from hermes.analysis.shell import Parsed
from hermes.analysis.traits import KINDS
from hermes.store import Session, StoredEvent

NAMESPACE = uuid.UUID("6d2b7f52-5b1c-5c0e-9d3a-0f4b2c8e7a16")
"""Of the identifiers that STIX leaves to their maker."""
MAX_OF_A_KIND = 200
"""Objects of one kind that one session adds, at most."""
MAX_TEXT = 5000
_NEVER = datetime(2024, 1, 1, tzinfo=UTC)
"""When what has no time of its own was made: identities and techniques."""
_HASH = re.compile(r"[0-9a-f]{64}")
_MALWARE = {
    "miner": "resource-exploitation", "botnet": "bot", "ddos": "ddos", "rootkit": "rootkit", "backdoor": "backdoor",
    "downloader": "downloader", "ransomware": "ransomware", "worm": "worm", "trojan": "trojan", "webshell": "webshell",
}  # fmt: skip
"""Kinds of malware in STIX's vocabulary, by the tags of YARA rules that say so."""


class Dossier(NamedTuple):
    """All that is known of one session."""

    session: Session
    events: Sequence[StoredEvent]
    commands: Sequence[Parsed]
    techniques: Sequence[Finding]
    files: Sequence[tuple[str, File]]
    """Each with the name it had."""
    returns: Sequence[Return]


class Bundle:
    """A bundle in the making."""

    def __init__(self, sensor: str, catalogue: dict[str, Technique]) -> None:
        self._objects: dict[str, Any] = {}
        self._catalogue = catalogue
        self._sensor = self._add(
            stix.Identity(
                id=_id("identity", sensor), created=_NEVER, modified=_NEVER, name=f"Hermes sensor {sensor}",
                identity_class="system",
                description="An SSH honeypot: whoever logs in there has no business there.",
            )
        )  # fmt: skip

    def session(self, dossier: Dossier, campaign: str | None = None) -> None:
        """Add one session; as one of the campaign with this identifier, if any."""
        found = _Session(self, dossier, campaign)
        found.add()

    def campaign(self, campaign: Campaign, journal: str) -> str:
        """Add a campaign, and return its identifier. `journal`: identity of the journal that its name is of."""
        shared = "\n".join(f"{it.sessions} share {KINDS.get(it.kind, it.kind)}: {it.label}" for it in campaign.reasons[:50])
        return self._add(
            stix.Campaign(
                id=_id("campaign", journal, campaign.id), created=campaign.first, modified=campaign.last,
                created_by_ref=self._sensor, name=f"Hermes campaign {campaign.id}", first_seen=campaign.first,
                last_seen=campaign.last,
                description=f"{campaign.sessions} sessions from {campaign.addresses} addresses.\n{shared}"[:MAX_TEXT],
            )
        )  # fmt: skip

    def serialize(self) -> str:
        """The bundle as JSON in ASCII, validated by the stix2 library."""
        objects = list(self._objects.values())
        names = "\n".join(sorted(self._objects))
        text = stix.Bundle(objects=objects, id=_id("bundle", names)).serialize()
        return json.dumps(json.loads(text), indent=2, ensure_ascii=True).replace("\x7f", "\\u007f")

    def _add(self, thing: Any) -> str:
        self._objects.setdefault(thing.id, thing)
        return str(thing.id)

    def technique(self, technique: str) -> str:
        """Add a technique of ATT&CK."""
        known = self._catalogue.get(technique)
        place = technique.replace(".", "/")
        phases = [stix.KillChainPhase(kill_chain_name="mitre-attack", phase_name=it) for it in known.tactics] if known else []
        return self._add(
            stix.AttackPattern(
                id=_id("attack-pattern", technique), created=_NEVER, modified=_NEVER, created_by_ref=self._sensor,
                name=known.name if known else technique,
                external_references=[
                    stix.ExternalReference(
                        source_name="mitre-attack", external_id=technique, url=f"https://attack.mitre.org/techniques/{place}/"
                    )
                ],
                **({"kill_chain_phases": phases} if phases else {}),
            )
        )  # fmt: skip

    def relate(self, source: str, how: str, target: str, time: datetime) -> None:
        """Say how two objects belong together."""
        self._add(
            stix.Relationship(
                id=_id("relationship", source, how, target), created=time, modified=time, created_by_ref=self._sensor,
                source_ref=source, relationship_type=how, target_ref=target,
            )
        )  # fmt: skip


class _Session:
    """What one session adds to a bundle."""

    def __init__(self, bundle: Bundle, dossier: Dossier, campaign: str | None) -> None:
        self._bundle = bundle
        self._dossier = dossier
        self._campaign = campaign
        self._session = dossier.session
        self._begun = dossier.session.started
        times = [it.time for it in dossier.events]
        self._ended = max([self._begun, *times])
        self._since = min([self._begun, *times])
        self._facts = [fact for it in dossier.events if (fact := it.fact()) is not None]
        self._seen: dict[str, None] = {}

    def add(self) -> None:
        """Add the observables first, and then what is made of them."""
        self._who()
        self._processes()
        urls = self._places()
        files = self._files()
        observed = self._bundle._add(
            stix.ObservedData(
                id=_id("observed-data", self._session.session_id), **self._made(),
                first_observed=self._since, last_observed=self._ended, number_observed=1, object_refs=list(self._seen),
            )
        )  # fmt: skip
        for finding in self._dossier.techniques:
            pattern = self._bundle.technique(finding.technique)
            self._sighted(pattern, observed, max(1, min(finding.count, 999_999_999)))
            if self._campaign is not None:
                self._bundle.relate(self._campaign, "uses", pattern, self._begun)
        self._indicators(urls, files, observed)
        self._keys(observed)

    def _made(self) -> dict[str, Any]:
        return {"created": self._begun, "modified": self._ended, "created_by_ref": self._bundle._sensor}

    def _observe(self, thing: Any) -> str:
        identity = self._bundle._add(thing)
        self._seen[identity] = None
        return identity

    def _place(self, host: str, system: str | None = None) -> str | None:
        """An address or a name as an observable; None if it is neither."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if not host or len(host) > 253 or "." not in host or any(it.isspace() or not it.isprintable() for it in host):
                return None
            return self._observe(stix.DomainName(value=host.lower()))
        kind = stix.IPv4Address if address.version == 4 else stix.IPv6Address
        return self._observe(kind(value=str(address), **({} if system is None else {"belongs_to_refs": [system]})))

    # ---- observables

    def _who(self) -> None:
        origin = next((it for it in self._facts if isinstance(it, events.ConnectionOrigin) and it.asn), None)
        system = None
        if origin is not None:
            named = {"name": origin.organization[:MAX_TEXT]} if origin.organization else {}
            system = self._observe(stix.AutonomousSystem(number=origin.asn, **named))
        source = self._place(self._session.source_ip, system)
        if source is not None:
            self._observe(
                stix.NetworkTraffic(
                    start=self._since, end=self._ended, src_ref=source, src_port=self._session.source_port, is_active=False,
                    protocols=["tcp", "ssh"],
                )
            )  # fmt: skip
            for forward in _first(it for it in self._facts if isinstance(it, events.ForwardRequested)):
                target = self._place(forward.host) if forward.kind == "direct-tcpip" else None
                if target is not None and 0 <= forward.port <= 65535:
                    self._observe(
                        stix.NetworkTraffic(src_ref=source, dst_ref=target, dst_port=forward.port, protocols=["tcp"])
                    )  # fmt: skip
        for attempt in _first(it for it in self._facts if isinstance(it, events.AuthAttempt)):
            self._account(attempt.username, attempt.password)

    def _account(self, username: str, password: str | None) -> None:
        secret = {} if password is None else {"credential": password[:MAX_TEXT]}
        self._observe(
            stix.UserAccount(
                id=_id("user-account", username, password or "", password is None), account_type="unix",
                account_login=username[:MAX_TEXT], **secret,
            )
        )  # fmt: skip

    def _processes(self) -> None:
        """What ran; where no processes were seen, what was sent to be run."""
        ran = _first(it for it in self._dossier.events if it.event == "process.started" and not it.body.get("error"))
        for event in ran:
            line = " ".join(map(str, event.body.get("argv") or ())) or str(event.body.get("program"))
            place = {"cwd": str(event.body["cwd"])[:MAX_TEXT]} if event.body.get("cwd") else {}
            self._observe(
                stix.Process(
                    id=_id("process", self._session.session_id, event.id), pid=event.body.get("pid"), created_time=event.time,
                    command_line=line[:MAX_TEXT], **place,
                )
            )  # fmt: skip
        for number, parsed in enumerate([] if ran else self._dossier.commands[:MAX_OF_A_KIND]):
            self._observe(
                stix.Process(id=_id("process", self._session.session_id, "line", number), command_line=parsed.text[:MAX_TEXT])
            )  # fmt: skip

    def _places(self) -> list[tuple[str, str]]:
        """URLs that were fetched, each with its identifier; and hosts and addresses that were named or tried."""
        urls: dict[str, None] = {}
        for parsed in self._dossier.commands:
            for download in parsed.facts.downloads:
                scheme = {"tftp": "tftp", "ftpget": "ftp"}.get(download.tool, "http")
                urls[download.source if "://" in download.source else f"{scheme}://{download.source}"] = None
            urls.update(dict.fromkeys(parsed.facts.urls))
            for host in parsed.facts.hosts[:MAX_OF_A_KIND]:
                self._place(host)
        for tried in _first(it for it in self._facts if isinstance(it, events.NetworkAttempted)):
            target = self._place(tried.address) if tried.family in ("inet", "inet6") else None
            if target is not None and 0 < tried.port <= 65535 and tried.call != "bind":
                protocol = tried.protocol if tried.protocol in ("tcp", "udp") else "ip"
                self._observe(stix.NetworkTraffic(dst_ref=target, dst_port=tried.port, protocols=[protocol]))
        return [(url, self._observe(stix.URL(value=url[:MAX_TEXT]))) for url in _first(iter(urls))]

    def _files(self) -> list[tuple[File, str]]:
        stored = {it.sha256: it for it in self._facts if isinstance(it, events.ArtifactStored) and _HASH.fullmatch(it.sha256)}
        known = {file.sha256: file for _, file in self._dossier.files}
        found: list[tuple[File, str]] = []
        for sha256, artifact in list(stored.items())[:MAX_OF_A_KIND]:
            file = known.get(sha256)
            name = artifact.path.rsplit("/", 1)[-1]
            more: dict[str, Any] = {"name": name[:MAX_TEXT]} if name else {}
            if file is not None and file.mime:
                more["mime_type"] = file.mime
            identity = self._observe(
                stix.File(
                    hashes={"MD5": artifact.md5, "SHA-1": artifact.sha1, "SHA-256": sha256}, size=artifact.size, **more
                )
            )  # fmt: skip
            if file is not None:
                found.append((file, identity))
        return found

    # ---- what they mean

    def _indicators(self, urls: list[tuple[str, str]], files: list[tuple[File, str]], observed: str) -> None:
        source = self._session.source_ip
        with contextlib.suppress(ValueError):
            family = ipaddress.ip_address(source).version
            self._indicator(f"[ipv{family}-addr:value = {_quoted(source)}]", f"SSH attacks from {source}", observed)
        for url, _ in urls:
            self._indicator(f"[url:value = {_quoted(url[:MAX_TEXT])}]", "Fetched by an SSH attacker", observed)
        for file, identity in files:
            pattern = f"[file:hashes.'SHA-256' = {_quoted(file.sha256)}]"
            indicator = self._indicator(pattern, "Brought or made by an SSH attacker", observed)
            kinds = sorted({_MALWARE[tag] for match in file.matches for tag in match.tags if tag in _MALWARE})
            if not kinds:
                continue
            rules = ", ".join(f"{it.namespace}:{it.rule}" for it in file.matches)
            malware = self._bundle._add(
                stix.Malware(
                    id=_id("malware", file.sha256), **self._made(), name=file.sha256, is_family=False, malware_types=kinds,
                    sample_refs=[identity], description=f"YARA: {rules}. {file.description}"[:MAX_TEXT],
                )
            )  # fmt: skip
            self._bundle.relate(indicator, "indicates", malware, self._begun)
            self._sighted(malware, observed, 1)
            if self._campaign is not None:
                self._bundle.relate(self._campaign, "uses", malware, self._begun)

    def _indicator(self, pattern: str, name: str, observed: str) -> str:
        indicator = self._bundle._add(
            stix.Indicator(
                id=_id("indicator", pattern), **self._made(), name=name, indicator_types=["malicious-activity"], pattern=pattern,
                pattern_type="stix", valid_from=self._begun,
            )
        )  # fmt: skip
        self._bundle.relate(indicator, "based-on", observed, self._begun)
        if self._campaign is not None:
            self._bundle.relate(indicator, "indicates", self._campaign, self._begun)
        return indicator

    def _keys(self, observed: str) -> None:
        """SSH keys, for which STIX has no object, as notes; and what came back."""
        texts = {f"{it.type} {it.key} {it.fingerprint}": None for parsed in self._dossier.commands for it in parsed.facts.keys}
        texts |= {key: None for _, file in self._dossier.files for key in file.keys}
        for text in _first(iter(texts)):
            self._note("SSH public key that the attacker left", text, observed)
        for it in self._dossier.returns:
            told = f"{it.value} of session {it.earlier_session} came back at {it.time:%Y-%m-%dT%H:%M:%SZ}"
            self._note(f"{it.kind}: left by an earlier session and used later", told, observed)

    def _note(self, about: str, text: str, observed: str) -> None:
        self._bundle._add(
            stix.Note(
                id=_id("note", self._session.session_id, about, text), **self._made(), abstract=about, content=text[:MAX_TEXT],
                object_refs=[observed],
            )
        )  # fmt: skip

    def _sighted(self, what: str, observed: str, count: int) -> None:
        self._bundle._add(
            stix.Sighting(
                id=_id("sighting", self._session.session_id, what), **self._made(), sighting_of_ref=what,
                observed_data_refs=[observed], where_sighted_refs=[self._bundle._sensor], first_seen=self._since,
                last_seen=self._ended, count=count,
            )
        )  # fmt: skip


def _id(kind: str, *named: object) -> str:
    return f"{kind}--{uuid.uuid5(NAMESPACE, json.dumps([kind, *named]))}"


def _quoted(text: str) -> str:
    """A string in a pattern of STIX."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _first(things: Iterable[Any]) -> list[Any]:
    return [it for _, it in zip(range(MAX_OF_A_KIND), things, strict=False)]
