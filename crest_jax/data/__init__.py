"""Rows, classes and devices: where examples come from and how they are drawn. Knows no gradient."""

from crest_jax.data.adapters import from_frame, from_records
from crest_jax.data.devices import place
from crest_jax.data.host import HostSource
from crest_jax.data.sampler import RowStream, next_subset, open_stream
from crest_jax.data.sources import ArraySource
from crest_jax.data.strata import Strata, make_strata

__all__ = [
    "ArraySource",
    "HostSource",
    "RowStream",
    "Strata",
    "from_frame",
    "from_records",
    "make_strata",
    "next_subset",
    "open_stream",
    "place",
]
