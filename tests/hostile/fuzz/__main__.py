"""`python -m tests.hostile.fuzz [--seconds N] [--seed N] [CASE …]`: fuzz a front, or replay kept cases."""

import argparse
import asyncio
import logging
import random
import sys
from pathlib import Path

from tests.hostile.fuzz import engine
from tests.hostile.fuzz.case import Case, load
from tests.hostile.fuzz.grammar import generate
from tests.hostile.fuzz.targets import FrontTarget

CORPUS = Path(__file__).parents[1] / "corpus"


async def main() -> int:
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # a server that closes is no news
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description="As root, the front is confined.")
    parser.add_argument("cases", nargs="*", type=Path, metavar="CASE", help="files to replay instead")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--seed-only", action="store_true", help="play the case of --seed alone")
    options = parser.parse_args()
    if options.cases:
        stream = [Case.parse(path.read_text()) for path in options.cases]
    elif options.seed_only:
        stream = [generate(options.seed)]
    else:
        print(f"seed {options.seed}", flush=True)
    try:
        async with FrontTarget.running() as target:
            if options.cases or options.seed_only:
                count = await engine.run(target, stream, seconds=0, at_least=len(stream))
            else:
                count = await engine.run(target, engine.cases(load(CORPUS), options.seed), seconds=options.seconds)
            print(f"{count} cases, all well: {await target.state()}")
            return 0
    except engine.Failure as failure:
        print(f"{failure.case.note}: {failure.reason}\ncutting it down …", flush=True)
        print(engine.Failure(await engine.minimised(failure.case, FrontTarget.running), failure.reason))
        return 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
