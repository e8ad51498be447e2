"""Measurements: does CREST pay here, and why."""

from crest_jax.diagnostics.answer import Pilot
from crest_jax.diagnostics.gradient_error import GradientErrors, measure_errors, measure_evenness
from crest_jax.diagnostics.worth import pilot

__all__ = ["GradientErrors", "Pilot", "measure_errors", "measure_evenness", "pilot"]
