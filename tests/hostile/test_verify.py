"""`hermes verify`: every probe holds against a real box, and finds the hole it is meant for in a weakened one."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from hermes.broker import linux
from hermes.broker.boxfs import BoxFiles
from hermes.broker.verify.probe import ALL
from hermes.broker.verify.runner import NOT_MADE, attempt, chosen
from tests.hostile import weakened
from tests.hostile.weakened import Holed

if TYPE_CHECKING:
    from hermes.broker.image import Image

pytestmark = pytest.mark.root
Prepare = Callable[[Holed], Awaitable[None]]

CONTROLS: dict[str, tuple[str, ...]] = {
    "open": (
        "unshare", "clone-namespaces", "nested-user-namespace", "setns", "own-namespaces", "pidfd-getfd", "mount",
        "mount-bind", "fsopen", "open-tree", "umount", "pivot-root", "file-handles", "device-nodes", "devices",
        "reboot", "swap", "bpf", "perf", "io-uring", "userfaultfd", "keyrings",
        "proc-sys", "sys", "kernel-log", "kernel-memory", "clock", "administration", "future-calls",
        "terminal-injection", "personality", "capabilities", "gain-capabilities", "identity", "no-new-privileges",
        "setuid-file", "priority", "resource-limits", "core-dumps", "masked-files", "control-groups", "log-flood",
    ),
    "unfiltered": ("seccomp",),
    "lying": ("other-architectures", "kernel-modules", "kexec", "ports"),
    "fake_proc": ("sysrq",),
    "visible": ("chroot-escape", "host-files", "host-paths", "socket-files", "executable-of-hermes"),
    "victim": ("ptrace", "foreign-memory", "signals", "spawner"),
    "processes": ("processes",),
    "leaky": ("open-files", "open-files-terminal", "environment"),
    "network": (
        "tcp", "udp", "ipv6", "abstract-sockets", "interfaces", "dns", "raw-sockets", "vsock", "packet-sockets", "netlink",
        "socket-families", "network-setup", "canaries-untouched",
    ),
    "named": ("host-name", "host-unchanged"),
    "frail": ("spawner-alive",),
    "roomy": (
        "fork-bomb", "memory-bomb", "shared-memory", "cpu-hog", "disk-fill", "inode-fill", "tmpfs-fill",
        "many-descriptors", "many-terminals", "sparse-file",
    ),
    "gulping": ("output-flood",),
    "unprotected": ("executable-overwrite",),
    "naive": (
        "file-symlinks", "file-races", "file-fifos", "file-devices", "file-hard-links", "file-setuid", "file-names",
        "file-depth", "file-numbers",
    ),
}  # fmt: skip
"""Each weakness, and the probes that must find it."""


def test_every_probe_has_a_control() -> None:
    chosen(quick=False)
    controlled = [name for names in CONTROLS.values() for name in names]
    assert sorted(controlled) == sorted(ALL)


class Boxes:
    """The weakened boxes of this module, each made when it is first asked for."""

    def __init__(self, image: "Image", root: Path) -> None:
        self._image = image
        self._root = root
        self._made: dict[str, Holed] = {}
        self._stack = AsyncExitStack()

    async def get(self, weakness: str) -> Holed:
        if weakness not in self._made:
            self._made[weakness] = await getattr(self, weakness)()
        return self._made[weakness]

    async def close(self) -> None:
        await self._stack.aclose()

    async def _holed(self, *changes: weakened.Change, **named: object) -> Holed:
        return await self._stack.enter_async_context(
            weakened.holed(self._image, self._root, *changes, **named)  # type: ignore[arg-type]
        )

    async def open(self) -> Holed:
        return await self._holed(weakened.opened, policy=weakened.weak)

    async def unfiltered(self) -> Holed:
        return await self._holed(weakened.without_filter)

    async def lying(self) -> Holed:
        return await self._holed(weakened.opened, policy=weakened.liar)

    async def fake_proc(self) -> Holed:
        holed = await self._holed(weakened.opened, policy=weakened.weak)
        await weakened.fake_proc(holed)
        return holed

    async def visible(self) -> Holed:
        holed = await self._holed(weakened.opened, weakened.show_canaries, policy=weakened.weak)
        await weakened.run_canary(holed)
        return holed

    async def victim(self) -> Holed:
        holed = await self._holed(weakened.opened, policy=weakened.weak)
        holed.attack.host.processes = (holed.victim("pid"),)
        holed.victim("mnt")
        return holed

    async def processes(self) -> Holed:
        return await self._holed(weakened.host_processes)

    async def leaky(self) -> Holed:
        self._stack.enter_context(pytest.MonkeyPatch.context()).setenv("HERMES_TEST_SECRET", "canary")
        return await self._holed(kind=weakened.Leaky)

    async def network(self) -> Holed:
        namespace = self._stack.enter_context(weakened.network())
        changes = (weakened.opened, weakened.in_network(namespace))
        return await self._holed(*changes, policy=weakened.weak, netns=namespace)

    async def named(self) -> Holed:
        before = os.open("/proc/thread-self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        self._stack.callback(os.close, before)
        linux.unshare(linux.CLONE_NEWUTS)
        self._stack.callback(linux.setns, before, linux.CLONE_NEWUTS)
        return await self._holed(weakened.opened, weakened.host_name, policy=weakened.weak)

    async def frail(self) -> Holed:
        return await self._holed(kind=weakened.Frail)

    async def roomy(self) -> Holed:
        roomy, narrow = weakened.limits(weakened.ROOMY), weakened.limits(weakened.NARROW)
        holed = await self._holed(config=roomy, claims=narrow)
        holed.attack.host.max_terminals = 8
        return holed

    async def unprotected(self) -> Holed:
        with weakened.unprotected_python():
            return await self._holed(weakened.opened, policy=weakened.weak)

    async def gulping(self) -> Holed:
        return await self._holed(kind=weakened.Gulping)

    async def naive(self) -> Holed:
        holed = await self._holed(config=weakened.limits({"file_size": 8 << 20}))
        holed.attack.host.patience = 3.0
        return holed


MISTAKES = {
    "file-symlinks": "follow", "file-races": "follow", "file-fifos": "wait", "file-devices": "devices",
    "file-hard-links": "multiply", "file-setuid": "open", "file-names": "lines", "file-depth": "paths", "file-numbers": "expand",
}  # fmt: skip
"""How the changes of a box are kept wrongly, so that the probe must say so."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def boxes(target_image: "Image", tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Boxes]:
    before = os.umask(0o077)
    boxes = Boxes(target_image, tmp_path_factory.mktemp("weak"))
    yield boxes
    await boxes.close()
    os.umask(before)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("weakness", "name"), [(weakness, name) for weakness, names in CONTROLS.items() for name in names])
async def test_every_probe_finds_its_hole(boxes: Boxes, weakness: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    holed = await boxes.get(weakness)
    if name in MISTAKES:
        monkeypatch.setattr(BoxFiles, "keep", weakened.naive(MISTAKES[name]))
    if name == "canaries-untouched":
        await weakened.touch_canary(holed)
    verdict = await attempt(ALL[name], holed.attack)
    assert not verdict.held, verdict.detail
    assert not verdict.detail.startswith(NOT_MADE), verdict.detail
