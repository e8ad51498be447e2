"""Facility location: the medoids of a pool and the examples that each stands for."""

from crest_jax.coresets.plan import Plan
from crest_jax.coresets.select import plan_coreset, select_coreset
from crest_jax.coresets.sharded import select_coreset_sharded
from crest_jax.coresets.stream import select_coreset_stream

__all__ = [
    "Plan",
    "plan_coreset",
    "select_coreset",
    "select_coreset_sharded",
    "select_coreset_stream",
]
