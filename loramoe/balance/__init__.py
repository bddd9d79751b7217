"""The localized balancing constraint, from gates to a number for each layer: pure functions of tensors."""

from loramoe.balance.constraint import (
    BLC_IMPORTANCES,
    BLC_TARGETS,
    BlcImportance,
    BlcTarget,
    coefficient,
    localized_balance,
    match_types,
    squared_cv,
)
from loramoe.balance.membership import Membership, positions_as_samples, rows_as_samples
from loramoe.balance.share import COUNTED_LABELS, IGNORE_INDEX, balance_loss, share_of_step

__all__ = [
    "BLC_IMPORTANCES",
    "BLC_TARGETS",
    "COUNTED_LABELS",
    "IGNORE_INDEX",
    "BlcImportance",
    "BlcTarget",
    "Membership",
    "balance_loss",
    "coefficient",
    "localized_balance",
    "match_types",
    "positions_as_samples",
    "rows_as_samples",
    "share_of_step",
    "squared_cv",
]
