"""Report on a model as one HTML page: :func:`scalloy.report`."""

from scalloy.reports.write import report

__all__ = ["report"]
