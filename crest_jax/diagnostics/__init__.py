"""Measurements: does CREST pay here, and why."""

from crest_jax.diagnostics.trials import Costs, Pilot, pilot
from crest_jax.diagnostics.variance import Redundancy, measure_redundancy

__all__ = ["Costs", "Pilot", "Redundancy", "measure_redundancy", "pilot"]
