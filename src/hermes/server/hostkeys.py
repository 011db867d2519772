"""The host keys: made at first start, kept, and given to asyncssh as objects (paths would be read at every connection)."""

import os
from pathlib import Path

import asyncssh

from hermes.errors import MachineError

_KINDS = (("ssh-rsa", "rsa", 3072), ("ecdsa-sha2-nistp256", "ecdsa", None), ("ssh-ed25519", "ed25519", None))
"""What Debian's openssh-server generates, in the order in which sshd lists it."""


def load_or_make(directory: Path) -> list[asyncssh.SSHKey]:
    """Return the RSA 3072, ECDSA and Ed25519 host keys kept in `directory`, making those that are missing.

    Raises MachineError when a key cannot be read, is damaged, or cannot be written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"cannot make the host keys' directory {directory}: {error.strerror}") from error
    return [_load_or_make(directory / f"ssh_host_{name}_key", algorithm, size) for algorithm, name, size in _KINDS]


def _load_or_make(path: Path, algorithm: str, size: int | None) -> asyncssh.SSHKey:
    try:
        if path.exists():
            return asyncssh.read_private_key(path)
        key = asyncssh.generate_private_key(algorithm, comment="root@localhost", **({"key_size": size} if size else {}))
        fresh = path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb") as file:
            file.write(key.export_private_key())
            file.flush()
            os.fsync(file.fileno())
        key.write_public_key(path.with_suffix(".pub"))
        fresh.rename(path)
        return key
    except OSError as error:
        raise MachineError(f"cannot read or write host key {path}: {error.strerror}") from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        raise MachineError(f"host key {path} is damaged ({error}): move it away and a new one is made") from error
