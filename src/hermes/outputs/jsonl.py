"""JSON lines: each record one object, in printable ASCII."""

from collections.abc import Sequence

import msgspec

from hermes.outputs.sink import Record
from hermes.store.lines import ascii_json

_encode = msgspec.json.Encoder().encode


def line(record: Record) -> bytes:
    """The record's line."""
    return ascii_json(_encode(record.flat())) + b"\n"


def lines(records: Sequence[Record]) -> bytes:
    """The records' lines."""
    return b"".join(map(line, records))
