"""Which expert serves which task type: one collector of routing statistics, a report, a model card."""

from loramoe.analysis.report import ReportInfo, write_report
from loramoe.analysis.routing import RoutingCollector, RoutingStats, collect_routing

__all__ = ["ReportInfo", "RoutingCollector", "RoutingStats", "collect_routing", "write_report"]
