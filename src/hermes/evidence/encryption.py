"""pyzipper, with what it imports when it first encrypts: by then root may have become another user, who cannot read it."""

import Cryptodome.Cipher._mode_ctr
import Cryptodome.Hash.HMAC
import Cryptodome.Hash.SHA1
import Cryptodome.Util.Counter  # noqa: F401
import pyzipper

__all__ = ["pyzipper"]
