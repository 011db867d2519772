"""Where the zygote's process begins: `python -I -m hermes.broker.zygote_main <fd>`.

The fewer modules it loads, the faster it forks and the less memory each box costs. Of `hermes.container` it needs the messages
only; importing that package would bring asyncio and the whole client along, so an empty one stands in for it.

What a box has executed by the name `/proc/self/exe` is the program of the spawner that starts it: this very Python. Where root of
a box is the host's (a Docker daemon without userns-remap), only that it is in use keeps the box from writing over it, and some
kernels do not care. So the zygote, and all it forks, run it from a mount that is read-only.
"""

import os
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_AGAIN = "again"
_BOXES = "/run/hermes/"


def _stand_in(package: str) -> None:
    spec = find_spec(package)
    module = ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules[package] = module


def _run_from_read_only_mount(fd: str) -> None:
    """Execute this program again, from a read-only mount in a mount namespace of its own; return where that cannot be made."""
    from hermes.broker import linux

    program = os.path.realpath(sys.executable)
    try:
        linux.private_mounts()
        linux.mount(program, program, "", linux.MS_BIND)
        linux.mount("none", program, "", linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY)
        _let_go_of_boxes(linux.umount)
    except OSError as error:
        print(f"zygote: Python cannot be protected: {error}", file=sys.stderr, flush=True)
        return
    os.execv(sys.executable, [sys.executable, "-I", "-m", "hermes.broker.zygote_main", fd, _AGAIN])


def _let_go_of_boxes(umount: "Callable[[str], None]") -> None:
    """Hold no mount of a box that is there already: it could not be taken down for as long as the zygote lives."""
    with open("/proc/self/mountinfo") as file:  # noqa: PTH123
        mounts = [line.split(" ")[4].encode().decode("unicode_escape") for line in file]
    for mount in reversed(mounts):
        if mount.startswith(_BOXES):
            umount(mount)


if __name__ == "__main__":
    if sys.argv[2:] != [_AGAIN] and os.geteuid() == 0:
        _run_from_read_only_mount(sys.argv[1])
    _stand_in("hermes.container")

    from hermes.broker.zygote_process import start

    start(int(sys.argv[1]))
