"""Structured pruning of the backbone. Knows only `wavlm`."""

from pyannote_prune.pruning.controller import SparsityController
from pyannote_prune.pruning.cost import Cost, Units, layer_costs, total_cost
from pyannote_prune.pruning.gates import UNIT_KINDS, Gates, attach_gates, detach_gates
from pyannote_prune.pruning.hard_concrete import HardConcrete
from pyannote_prune.pruning.surgery import cut

__all__ = [
    "UNIT_KINDS",
    "Cost",
    "Gates",
    "HardConcrete",
    "SparsityController",
    "Units",
    "attach_gates",
    "cut",
    "detach_gates",
    "layer_costs",
    "total_cost",
]
