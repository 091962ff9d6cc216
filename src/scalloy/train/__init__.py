"""How a module is trained: see :mod:`scalloy.train.plan`."""

from scalloy.train import memory, plan, schedules
from scalloy.train.plan import NonFiniteLoss, TermsPlan

__all__ = ["NonFiniteLoss", "TermsPlan", "memory", "plan", "schedules"]
