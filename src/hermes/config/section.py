"""What a group of settings is: frozen, strict, and asked for what cannot be meant together."""

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


class Section(BaseModel):
    """A group of settings. Two sections with the same values are equal; none can be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if conflicts := list(self.conflicts()):
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(
                        type=PydanticCustomError("conflict", "{reason}", {"reason": it.reason, "keys": it.keys}),
                        loc=(),
                        input=None,
                    )
                    for it in conflicts
                ],
            )
        return self

    def conflicts(self) -> "Iterable[Conflict]":
        """What cannot be meant, though each value is right by itself."""
        return ()


class Conflict(NamedTuple):
    """Settings that exclude each other: the dotted `keys`, the one to change first, and why."""

    keys: tuple[str, ...]
    reason: str


def repeated(values: Iterable[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
