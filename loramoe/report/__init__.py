"""Which expert served which task type: measured over a data set, written as JSON and drawn as a figure."""

from loramoe.report.figure import draw_shares
from loramoe.report.shares import ShareMeter, Shares, write_shares

__all__ = ["ShareMeter", "Shares", "draw_shares", "write_shares"]
