"""CREST: Algorithm 1 of the paper, and nothing else."""

from crest_jax.algorithm.config import CrestConfig, RegionConfig
from crest_jax.algorithm.regions import Region, predict, relative_error
from crest_jax.algorithm.state import CoresetBuffer, CrestState, Event

__all__ = [
    "CoresetBuffer",
    "CrestConfig",
    "CrestState",
    "Event",
    "Region",
    "RegionConfig",
    "predict",
    "relative_error",
]
