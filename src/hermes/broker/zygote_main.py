"""Where the zygote's process begins: `python -I -m hermes.broker.zygote_main <fd>`.

The fewer modules it loads, the faster it forks and the less memory each box costs. Of `hermes.container` it needs the messages
only; importing that package would bring asyncio and the whole client along, so an empty one stands in for it.
"""

import sys
from importlib.util import find_spec
from types import ModuleType


def _stand_in(package: str) -> None:
    spec = find_spec(package)
    module = ModuleType(package)
    module.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    sys.modules[package] = module


if __name__ == "__main__":
    _stand_in("hermes.container")

    from hermes.broker.zygote_process import start

    start(int(sys.argv[1]))
