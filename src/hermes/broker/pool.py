"""The pool: it keeps boxes warm, gives each session one of its own, and takes them back.

Every decision is a synchronous step that changes state and does no I/O (`_turn`, and the pure `plan` in it); engine calls run
in tasks of their own, outside any lock. A box belongs to exactly one of: a creation, `_warm`, `_active`, `_stopping`.
"""

import asyncio
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import structlog

from hermes import events
from hermes.broker.engines.base import Engine
from hermes.broker.facts import fact
from hermes.broker.forensics import Facts, Forensics
from hermes.broker.limit_watch import Watch
from hermes.broker.plan import PooledBox, Removal, State, Waiter, plan
from hermes.config.models import ContainerPoolConfig
from hermes.container.messages import BrokerEvent, PoolStatus
from hermes.errors import AllocationError, EngineError
from hermes.tasks import TaskOwner

log = structlog.get_logger(__name__)

BACKOFF = (0.25, 30.0)
"""Seconds between creations while the engine fails: the first pause, doubled each time, and the longest."""
YOUNG = 10.0
"""A warm box that dies before this many seconds counts as a failure of the engine: the next one will hardly do better."""

COURTESY = 0.05
"""Seconds after a session took or gave back a box in which the pool does nothing that can wait: a prompt comes first."""


class Pool:
    """Boxes of one engine. The engine is started before and closed after; the pool calls nothing else on it than create, open
    and destroy. `emit` is called with each fact."""

    def __init__(
        self,
        engine: Engine,
        config: ContainerPoolConfig,
        *,
        emit: Callable[[BrokerEvent], None],
        forensics: Forensics | None = None,
        backoff: tuple[float, float] = BACKOFF,
    ) -> None:
        self.ready = asyncio.Event()
        """The pool held its full number of warm boxes for the first time."""
        self._engine = engine
        self._config = config
        self._emit_fact = emit
        self._forensics = forensics
        self._backoff = backoff
        self._watch = Watch(engine, config, emit, forensics)
        self._warm: deque[PooledBox] = deque()
        self._active: dict[str, PooledBox] = {}
        self._waiting: dict[str, Waiter] = {}  # in the order they came
        self._stopping: deque[Removal] = deque()
        self._deferred: dict[asyncio.TimerHandle, Removal] = {}  # what the engine could not remove yet
        self._creating = 0
        self._destroying = 0
        self._failures = 0  # creations failed in a row
        self._deaths = 0  # warm boxes that died young since one was last handed out
        self._failure = ""
        self._retry: asyncio.TimerHandle | None = None
        self._courtesy: asyncio.TimerHandle | None = None
        self._courtesy_ends = 0.0
        self._running = False
        self._started = 0.0
        self._creators = TaskOwner("pool.create")
        self._removers = TaskOwner("pool.destroy")
        self._idle = asyncio.Event()

    # ---- what a caller sees

    @property
    def engine_name(self) -> str:
        """What makes the boxes."""
        return self._engine.name

    @property
    def image(self) -> str:
        """What they are made from."""
        return self._config.image

    async def start(self) -> None:
        """Begin to fill the pool; `ready` is set when it is full."""
        self._running = True
        self._started = time.monotonic()
        self._turn()

    async def allocate(self, session_id: str) -> PooledBox:
        """Return the session's box: a warm one at once, else the next one made, first come first served.

        Raises AllocationError when `max_active` is reached, after `allocation_timeout`, when the pool closes, or when boxes
        cannot be removed. Cancelled, it holds nothing.
        """
        if (held := self._active.get(session_id)) is not None:
            held.delivered = True
            return held
        waiter = self._waiting.get(session_id)
        if waiter is None:
            self._admit()
            if self._warm:
                held = self._hand_out(self._warm.popleft(), session_id, 0.0)
                held.delivered = True
                return held
            waiter = self._waiting[session_id] = Waiter()
            self._turn()
        waiter.callers += 1
        try:
            async with asyncio.timeout(self._config.allocation_timeout):
                outcome = await asyncio.shield(waiter.outcome)
        except TimeoutError:
            self._leave(session_id, waiter)
            reason = f"no container within {self._config.allocation_timeout:g} seconds"
            raise self._refusal(f"{reason}; the engine fails: {self._failure}" if self._failure else reason) from None
        except asyncio.CancelledError:
            self._leave(session_id, waiter)
            raise
        if isinstance(outcome, str):
            raise AllocationError(outcome)
        if outcome.state is not State.ACTIVE:
            raise AllocationError("the container ended as soon as it was given out")
        outcome.delivered = True
        return outcome

    def release(self, session_id: str, *, keep: bool = True) -> None:
        """Stop the session's box; ignored if it holds none. Without `keep`, nothing of it is kept, nor said."""
        if (held := self._active.pop(session_id, None)) is not None:
            if not keep:
                held.session_id = None
            self._stop(held)
            self._courtesy_ends = time.monotonic() + COURTESY
            self._turn()

    def reconfigure(self, config: ContainerPoolConfig) -> None:
        """Hold these numbers from now on (`hermes.config.reload` says which can change); boxes are made as before."""
        self._config = config
        while len(self._warm) > config.size:
            self._stop(self._warm.popleft())
        self._turn()

    def status(self) -> PoolStatus:
        """What the pool holds."""
        return PoolStatus(
            engine=self._engine.name,
            size=self._config.size,
            warm=len(self._warm),
            creating=self._creating,
            active=len(self._active),
            stopped=self._forensics.count if self._forensics else 0,
        )

    async def close(self) -> None:
        """Refuse whoever waits, destroy every box. What the engine cannot destroy in time is left to its own `close()`."""
        self._running = False
        self._resume()
        if self._courtesy is not None:
            self._courtesy.cancel()
        for waiter in self._waiting.values():
            if not waiter.outcome.done():
                waiter.outcome.set_result("the pool is closing")
        self._waiting.clear()
        await self._creators.close()
        for held in [*self._warm, *self._active.values()]:
            self._stop(held)
        self._warm.clear()
        self._active.clear()
        for timer in list(self._deferred):
            timer.cancel()
            self._stopping.append(self._deferred.pop(timer))
        self._turn()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._config.create_timeout):
                await self._idle.wait()
        await self._removers.close()
        self._watch.close()

    # ---- decisions: no await in here

    def _turn(self) -> None:
        """Begin what there is to begin."""
        create, destroy = plan(
            size=self._config.size if self._running else 0,
            concurrency=self._config.concurrency,
            max_stopping=self._config.max_active,
            warm=len(self._warm),
            creating=self._creating,
            waiting=len(self._waiting),
            stopping=len(self._stopping),
            destroying=self._destroying,
            failing=self._failures > 0,
            paused=self._retry is not None or not self._running,
            courteous=self._is_courteous(),
        )
        for _ in range(create):
            self._creating += 1
            self._creators.spawn(self._create(), name="create")
        for _ in range(destroy):
            self._destroying += 1
            removal = self._stopping.popleft()
            self._removers.spawn(self._destroy(removal), name=removal.box.id)
        if self._stopping or self._destroying:
            self._idle.clear()
        else:
            self._idle.set()

    def _is_courteous(self) -> bool:
        """Return whether the machine is to be left to a session that has just begun or ended; if so, look again after it."""
        left = self._courtesy_ends - time.monotonic()
        if left <= 0 or not self._running or not self.ready.is_set():
            return False
        if self._courtesy is None:
            self._courtesy = asyncio.get_running_loop().call_later(left, self._courtesy_over)
        return True

    def _courtesy_over(self) -> None:
        self._courtesy = None
        self._turn()

    def _admit(self) -> None:
        if not self._running:
            raise AllocationError("the pool is closing")
        if len(self._active) + len(self._waiting) >= self._config.max_active:
            self._emit(events.LimitReached(limit="container_pool.max_active", value=self._config.max_active))
            raise self._refusal(f"{self._config.max_active} containers are active or asked for (container_pool.max_active)")
        if len(self._deferred) > self._config.max_active:
            raise self._refusal(f"{len(self._deferred)} stopped containers cannot be removed")

    def _refusal(self, reason: str) -> AllocationError:
        self._emit(events.PoolExhausted(reason=reason, active=len(self._active), warm=len(self._warm)))
        return AllocationError(reason)

    def _hand_out(self, held: PooledBox, session_id: str, waited: float) -> PooledBox:
        asyncio.get_running_loop().remove_reader(held.sock)
        held.state = State.ACTIVE
        held.session_id = session_id
        held.waited = waited
        held.allocated = time.time()
        self._active[session_id] = held
        self._deaths = 0
        self._watch.begin(held.box, self._facts(held), expired=lambda: self.release(session_id))
        self._courtesy_ends = time.monotonic() + COURTESY
        self._turn()
        return held

    def _offer(self, held: PooledBox) -> None:
        """Give a fresh box to whoever waits longest, or keep it warm."""
        held.state = State.WARM
        if held.session_id is not None:
            self._watch.end(held.box)
        held.session_id = held.allocated = None
        if self._waiting:
            session_id, waiter = next(iter(self._waiting.items()))
            del self._waiting[session_id]
            waiter.outcome.set_result(self._hand_out(held, session_id, time.monotonic() - waiter.since))
        else:
            self._warm.append(held)
            # Nobody has asked anything of it: what can be read is the end, for one that can no longer be entered.
            asyncio.get_running_loop().add_reader(held.sock, self._ended, held)

    def _leave(self, session_id: str, waiter: Waiter) -> None:
        """One caller less waits; with the last one goes the place in the queue, or the box that nobody saw."""
        waiter.callers -= 1
        if waiter.callers:
            return
        if self._waiting.get(session_id) is waiter:
            del self._waiting[session_id]
        elif waiter.outcome.done() and (held := self._active.get(session_id)) is waiter.outcome.result() and not held.delivered:
            del self._active[session_id]
            self._offer(held)
            self._turn()

    def _stop(self, held: PooledBox) -> None:
        held.state = State.STOPPED
        self._watch.stop(held.box)
        asyncio.get_running_loop().remove_reader(held.sock)
        with suppress(OSError):  # the other end went first
            held.sock.shutdown(socket.SHUT_RDWR)
        held.sock.close()
        self._stopping.append(Removal(held.box, self._facts(held) if held.session_id is not None else None))

    def _ended(self, held: PooledBox) -> None:
        """The box's init ended, or what stands in it for us."""
        match held.state:
            case State.STOPPED:
                return
            case State.WARM:
                self._warm.remove(held)
                self._stop(held)
                if time.time() - held.created < YOUNG:
                    self._deaths += 1
                    self._failed("create", "a container ended soon after its start")
                self._emit(events.ContainerLost(container_id=held.id, reason=held.box.lost))
            case State.ACTIVE:
                assert held.session_id is not None
                self._active.pop(held.session_id, None)
                self._stop(held)
                self._emit(events.ContainerLost(container_id=held.id, session_id=held.session_id, reason=held.box.lost))
        self._turn()

    def _failed(self, operation: str, reason: str) -> None:
        self._emit(events.EngineFailed(engine=self._engine.name, operation=operation, reason=reason))
        self._failure = reason
        first, longest = self._backoff
        pause = min(longest, first * 2.0 ** min(self._failures + self._deaths - 1, 30))
        self._resume()
        self._retry = asyncio.get_running_loop().call_later(pause, self._try_again)

    def _resume(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _try_again(self) -> None:
        self._retry = None
        self._turn()

    def _emit(self, event: events.Event) -> None:
        self._emit_fact(fact(event))

    # ---- what the decisions begin

    async def _create(self) -> None:
        began = time.monotonic()
        try:
            held = await self._make(secrets.token_hex(8))
        except (EngineError, TimeoutError) as error:
            self._failures += 1
            self._failed("create", str(error) or f"a container took longer than {self._config.create_timeout:g} seconds")
        except Exception:
            self._failures += 1
            self._failed("create", "internal error: see the log")
            raise
        else:
            self._failures = 0
            if not self._deaths:
                self._failure = ""
                self._resume()
            seconds = time.monotonic() - began
            self._emit(events.ContainerCreated(container_id=held.id, engine=self._engine.name, seconds=seconds))
            self._offer(held)
            if len(self._warm) >= self._config.size and not self.ready.is_set():
                self.ready.set()
                self._emit(events.PoolReady(size=len(self._warm), seconds=time.monotonic() - self._started))
        finally:
            self._creating -= 1
            self._turn()

    async def _make(self, container_id: str) -> PooledBox:
        """Create and open a box, within `create_timeout`. What is created and cannot be used is put among the stopping."""
        async with asyncio.timeout(self._config.create_timeout):
            box = await self._engine.create(container_id)
            dead = asyncio.Event()
            box.on_exit.append(dead.set)
            try:
                sock = await self._engine.open(box)
            except BaseException:
                self._stopping.append(Removal(box))
                raise
        held = PooledBox(box, sock)
        if dead.is_set():
            self._stop(held)
            raise EngineError("the container's init ended at once")
        box.on_exit.append(lambda: self._ended(held))
        return held

    async def _destroy(self, removal: Removal) -> None:
        box, facts = removal.box, removal.facts
        # What could not be kept the first time is given up: the box must go.
        keep = self._forensics.place(box.id) if self._forensics and facts and not removal.attempts else None
        removal.attempts += 1
        try:
            async with asyncio.timeout(self._config.create_timeout):
                copied = await self._engine.destroy(box, keep=keep)
        except (EngineError, TimeoutError) as error:
            self._defer(removal, str(error) or f"a container was not removed within {self._config.create_timeout:g} seconds")
        except Exception:
            self._defer(removal, "internal error: see the log")
            raise
        else:
            if facts is not None:
                kept = await self._forensics.add(facts, copied) if self._forensics else None
                self._emit(
                    events.ContainerStopped(
                        container_id=box.id, session_id=facts.session_id, kept=None if kept is None else str(kept)
                    )
                )
            self._watch.end(box)
        finally:
            self._destroying -= 1
            self._turn()

    def _defer(self, removal: Removal, reason: str) -> None:
        """Try again later; a pool that closes leaves the box to the engine."""
        self._emit(events.EngineFailed(engine=self._engine.name, operation="destroy", reason=reason))
        if not self._running:
            log.error("container not removed", container_id=removal.box.id, reason=reason)
            return
        first, longest = self._backoff

        def again() -> None:
            del self._deferred[timer]
            self._stopping.append(removal)
            self._turn()

        timer = asyncio.get_running_loop().call_later(min(longest, first * 2.0 ** min(removal.attempts, 30)), again)
        self._deferred[timer] = removal

    def _facts(self, held: PooledBox) -> Facts:
        return held.facts(self._engine.name, self._config.image)
