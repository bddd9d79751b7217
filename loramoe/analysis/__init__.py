"""Which expert serves which task type: one collector of routing statistics, a report, a model card."""

from loramoe.analysis.report import write_report
from loramoe.analysis.routing import RoutingCollector, RoutingStats, collect_routing, log_values

__all__ = ["RoutingCollector", "RoutingStats", "collect_routing", "log_values", "write_report"]
