"""Runs cases against a target, and cuts a case that breaks it down to what is needed for that."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeVar

from tests.hostile.fuzz.case import Case
from tests.hostile.fuzz.client import play
from tests.hostile.fuzz.grammar import Grammar, generate, relative
from tests.hostile.fuzz.targets import Broken, Target

CASE_PATIENCE = 300.0
T = TypeVar("T", bound=Target)


@dataclass
class Failure(Exception):
    """A case that broke an invariant."""

    case: Case
    reason: str

    def __str__(self) -> str:
        how = "Keep this as tests/hostile/corpus/NAME.case; replay: python -m tests.hostile.fuzz NAME.case"
        return f"{self.reason}\n\n{how}\n\n{self.case.text()}"


def cases(kept: dict[str, Case], seed: int) -> Iterator[Case]:
    """Every kept case as it is, and then new ones without end: of every four, one is a relative of a kept one."""
    yield from kept.values()
    number = seed
    dice = Grammar(seed)
    while True:
        number += 1
        yield relative(dice.one(list(kept.values())), number) if kept and number % 4 == 0 else generate(number)


async def run(target: Target, stream: Iterable[Case], *, seconds: float, at_least: int = 0) -> int:
    """Play cases for so long, and at least so many; return how many. Raises Failure at the first that breaks an invariant."""
    count = 0
    ends = time.monotonic() + seconds
    for case in stream:
        if count >= at_least and time.monotonic() > ends:
            break
        await try_one(target, case)
        count += 1
    return count


async def try_one(target: Target, case: Case) -> None:
    """Play one case and look at the target. Raises Failure."""
    try:
        async with asyncio.timeout(CASE_PATIENCE):
            await play(case, target.port)
        await target.check()
    except (Broken, AssertionError, TimeoutError, OSError) as error:
        raise Failure(case, f"{type(error).__name__}: {error}") from error


async def minimised(case: Case, fresh: Callable[[], AbstractAsyncContextManager[T]]) -> Case:
    """The shortest case found that still breaks a fresh target: steps are left out, halves first."""
    size = max(1, len(case.steps) // 2)
    while size:
        at = 0
        while at < len(case.steps):
            shorter = Case(case.depth, case.steps[:at] + case.steps[at + size :], case.compressed, case.note)
            if await _breaks(shorter, fresh):
                case = shorter
            else:
                at += size
        size //= 2
    return case


async def _breaks(case: Case, fresh: Callable[[], AbstractAsyncContextManager[T]]) -> bool:
    try:
        async with fresh() as target:
            await try_one(target, case)
    except (Failure, AssertionError, TimeoutError):
        return True
    return False
