"""How long evidence is kept: what it is worth (`value`), where recordings lie (`shelves`), and who removes it (`keeper`)."""

from hermes.evidence.keeper import Keeper

__all__ = ["Keeper"]
