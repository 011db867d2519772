"""How the front sees containers: a pool to ask, a container to start processes in, and nothing of how it is made."""

from hermes.container.client import Container
from hermes.container.control import ControlSocket, Report
from hermes.container.messages import BrokerEvent, PoolStatus, Terminal
from hermes.container.pool import ContainerPool
from hermes.container.process import ContainerProcess, Exit

__all__ = [
    "BrokerEvent",
    "Container",
    "ContainerPool",
    "ContainerProcess",
    "ControlSocket",
    "Exit",
    "PoolStatus",
    "Report",
    "Terminal",
]
