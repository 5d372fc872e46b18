"""Removing a shortcut: groups of images, the features that carry it, what their ablation does."""

from vitlens.debias.candidates import Candidate, find_candidates
from vitlens.debias.groups import GroupedImages, load_groups, load_waterbirds
from vitlens.debias.model import DebiasedModel
from vitlens.debias.report import GroupReport, TradeOff, group_report
from vitlens.debias.runs import GroupRuns
from vitlens.debias.search import Debiasing, debias

__all__ = [
    "Candidate",
    "DebiasedModel",
    "Debiasing",
    "GroupReport",
    "GroupRuns",
    "GroupedImages",
    "TradeOff",
    "debias",
    "find_candidates",
    "group_report",
    "load_groups",
    "load_waterbirds",
]
