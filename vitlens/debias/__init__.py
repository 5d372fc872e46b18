"""Shortcut removal: images in groups, the features that carry a shortcut, a model without them."""

from vitlens.debias.candidates import Candidate, find_candidates
from vitlens.debias.groups import GroupedImages, load_groups, load_waterbirds
from vitlens.debias.model import DebiasedModel, Removal
from vitlens.debias.report import GroupReport, TradeOff, group_report
from vitlens.debias.runs import GroupRuns, LiveReports
from vitlens.debias.search import Debiasing, debias

__all__ = [
    "Candidate",
    "DebiasedModel",
    "Debiasing",
    "GroupReport",
    "GroupRuns",
    "GroupedImages",
    "LiveReports",
    "Removal",
    "TradeOff",
    "debias",
    "find_candidates",
    "group_report",
    "load_groups",
    "load_waterbirds",
]
