"""Delivers the journal of a directory to a file, until it is killed."""

import asyncio
import sys
from pathlib import Path

from hermes.config.outputs import JsonLinesOutput
from hermes.outputs import jsonl
from hermes.outputs.alerts import Alerts
from hermes.outputs.delivery import Delivery
from hermes.outputs.files import FileSink

place, target = Path(sys.argv[1]), sys.argv[2]
config = JsonLinesOutput(type="jsonl", name="siem", path=target, start="beginning")
sink = FileSink(target, jsonl.lines)
alerts = Alerts([], lambda record: None)
sys.stdout.write("begins\n")
sys.stdout.flush()
asyncio.run(Delivery(config, sink, journal=place / "journal.db", cursors_dir=place / "outputs", alerts=alerts).run())
