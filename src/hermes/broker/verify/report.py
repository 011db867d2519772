"""What a run of probes found, and for what it is true: plain data, as `hermes verify --json` prints it."""

import hashlib
import json
import platform
import time
from datetime import UTC, datetime

import msgspec

import hermes
from hermes.broker.policy import MASKED_PATHS, READONLY_PATHS, Policy

MAX_NAMED = 8
"""Failed probes that an error names; the report has all."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """How one attack ended. `held` is false when it got through, and also when it could not be made."""

    name: str
    group: str
    tries: str
    held: bool
    detail: str
    seconds: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One run. It is true for this engine, runtime, kernel, policy and image, and for no other."""

    held: bool
    hermes: str
    time: str
    """When it began, UTC."""
    seconds: float
    quick: bool
    engine: str
    runtime: str
    kernel: str
    machine: str
    image: str
    image_digest: str
    """Of what the image was built from; empty for an image that only Docker knows."""
    policy: str
    """SHA-256 of everything that limits a box."""
    warnings: list[str]
    probes: list[Verdict]

    @property
    def failed(self) -> list[Verdict]:
        """The probes that did not hold."""
        return [one for one in self.probes if not one.held]

    def summary(self) -> str:
        """One line on what failed."""
        named = "; ".join(f"{one.name}: {one.detail}" for one in self.failed[:MAX_NAMED])
        more = len(self.failed) - MAX_NAMED
        rest = f"; and {more} more" if more > 0 else ""
        return f"{len(self.failed)} of {len(self.probes)} attacks on a box were not held: {named}{rest}"


def policy_digest(policy: Policy) -> str:
    """The fingerprint of a policy: two boxes with the same may do the same."""
    facts = {
        "capabilities": policy.capabilities,
        "rlimits": policy.rlimits,
        "no_new_privileges": policy.security.no_new_privileges,
        "seccomp": policy.oci_seccomp(),
        "masked": MASKED_PATHS,
        "readonly": READONLY_PATHS,
        "limits": policy.limits.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def make(
    probes: list[Verdict],
    *,
    began: float,
    quick: bool,
    engine: str,
    runtime: str,
    image: str,
    image_digest: str,
    policy: Policy,
    warnings: list[str],
) -> Report:
    """The report on probes that began at `began` (seconds since the epoch) and have just ended."""
    return Report(
        held=bool(probes) and all(one.held for one in probes),
        hermes=hermes.__version__,
        time=datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        seconds=round(time.time() - began, 3),
        quick=quick,
        engine=engine,
        runtime=runtime,
        kernel=platform.release(),
        machine=platform.machine(),
        image=image,
        image_digest=image_digest,
        policy=policy_digest(policy),
        warnings=warnings,
        probes=probes,
    )
