"""Structured pruning of the backbone. Knows only `wavlm`."""

from pyannote_prune.pruning.cost import Cost, Units, layer_costs, total_cost

__all__ = ["Cost", "Units", "layer_costs", "total_cost"]
