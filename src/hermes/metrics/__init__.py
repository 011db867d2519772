"""What is counted and measured, and how others get to see it."""

from hermes.metrics.catalogue import CATALOGUE, Metric, Metrics
from hermes.metrics.endpoint import Endpoint
from hermes.metrics.state import State, Watch

__all__ = ["CATALOGUE", "Endpoint", "Metric", "Metrics", "State", "Watch"]
