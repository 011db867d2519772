"""SSH public keys in text that attackers wrote: found, and named by their fingerprints."""

import base64
import binascii
import re
from hashlib import sha256

MAX_KEYS = 50
_KEY = re.compile(
    rb"(ssh-(?:rsa|dss|ed25519)|ecdsa-sha2-nistp(?:256|384|521)|sk-(?:ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com)"
    rb"[ \t]+(AAAA[A-Za-z0-9+/]{30,4000}={0,2})"
)


def find(data: bytes) -> list[str]:
    """Public keys in text, each once as `TYPE BASE64`, in their order; at most `MAX_KEYS`."""
    found: dict[str, None] = {}
    for match in _KEY.finditer(data):
        text = f"{match[1].decode()} {match[2].decode()}"
        if fingerprint(text) is not None:
            found[text] = None
        if len(found) == MAX_KEYS:
            break
    return list(found)


def fingerprint(key: str) -> str | None:
    """`SHA256:…` of `TYPE BASE64 …`, as OpenSSH shows it; None if that is no key of its type."""
    kind, _, rest = key.partition(" ")
    encoded = rest.strip().partition(" ")[0].rstrip("=")
    try:
        blob = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    except (binascii.Error, ValueError):
        return None
    if blob[:4] != len(kind).to_bytes(4, "big") or blob[4 : 4 + len(kind)] != kind.encode():
        return None
    return "SHA256:" + base64.b64encode(sha256(blob).digest()).decode().rstrip("=")
