"""Training of modules; :mod:`scalloy.train.plan` is the place to begin."""

from scalloy.train import malloc, plan, schedules
from scalloy.train.plan import NonFiniteLoss, TermsPlan

__all__ = ["NonFiniteLoss", "TermsPlan", "malloc", "plan", "schedules"]
