"""Structured pruning of the backbone. Knows only `wavlm`."""

from pyannote_prune.pruning.controller import SparsityController
from pyannote_prune.pruning.cost import Cost, Units, layer_costs, total_cost
from pyannote_prune.pruning.factorization import factorize
from pyannote_prune.pruning.gates import UNIT_KINDS, Gates, attach_gates, detach_gates
from pyannote_prune.pruning.hard_concrete import HardConcrete
from pyannote_prune.pruning.importance import METHODS, close_least_important, importance, start_from, unit_costs
from pyannote_prune.pruning.one_shot import one_shot
from pyannote_prune.pruning.surgery import cut

__all__ = [
    "METHODS",
    "UNIT_KINDS",
    "Cost",
    "Gates",
    "HardConcrete",
    "SparsityController",
    "Units",
    "attach_gates",
    "close_least_important",
    "cut",
    "detach_gates",
    "factorize",
    "importance",
    "layer_costs",
    "one_shot",
    "start_from",
    "total_cost",
    "unit_costs",
]
