"""Example networks."""

from experiments.models.networks import MODELS, build

__all__ = ["MODELS", "build"]
