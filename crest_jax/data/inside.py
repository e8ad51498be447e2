"""Draws from a pool, and what is observed of them, inside a program of many steps."""

from typing import NamedTuple

from crest_jax import _checks
from crest_jax.data.exclusion import (
    Exclusion,
    ExclusionConfig,
    Noted,
    handed_back,
    noted_in,
    share_drawn,
)
from crest_jax.data.pool import Pool, PoolRules, weighted_subset
from crest_jax.data.sampler import InPlay, RowStream
from crest_jax.data.strata import Strata
from crest_jax.types import Array


class Drawing(NamedTuple):
    """What the steps of one program read of a pool.

    Attributes:
      strata: the examples by class.
      in_play: those that are drawn from; None where none is ever excluded.
      exclusion: who is excluded.
    """

    strata: Strata
    in_play: InPlay | None
    exclusion: Exclusion


class Drawn(NamedTuple):
    """What they change.

    Attributes:
      stream: where the walk through the examples has come to.
      noted: what was observed.
      all_finite: [], bool: all losses that were handed back were finite.
    """

    stream: RowStream
    noted: Noted
    all_finite: Array


def opened(rules: PoolRules, pool: Pool) -> tuple[Drawing, Drawn]:
    """Return what the steps of one program read of a pool, and what they change.

    Example:
      >>> import jax
      >>> from crest_jax.data.classes import classes_of
      >>> from crest_jax.data.pool import make_rules, open_pool
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> drawing, drawn = opened(rules, open_pool(rules, jax.random.key(0)))
      >>> draw_inside(None, drawing, drawn, 2)[2].tolist()
      [1.0, 1.0]
    """
    exclusion = pool.exclusion
    drawing = Drawing(rules.strata, pool.in_play, exclusion)
    return drawing, Drawn(pool.stream, noted_in(exclusion), exclusion.all_finite)


def closed(pool: Pool, drawn: Drawn) -> Pool:
    """Return the pool after the steps of a program.

    Example:
      >>> import jax
      >>> from crest_jax.data.classes import classes_of
      >>> from crest_jax.data.pool import make_rules, open_pool
      >>> rules = make_rules(classes_of([0, 1]), largest_draw=2, exclusion=None, capacity=1)
      >>> pool = open_pool(rules, jax.random.key(0))
      >>> closed(pool, opened(rules, pool)[1]).excluded
      0
    """
    seen = pool.exclusion._replace(**drawn.noted._asdict(), all_finite=drawn.all_finite)
    return pool._replace(stream=drawn.stream, exclusion=seen)


def draw_inside(
    own: ExclusionConfig | None, drawing: Drawing, drawn: Drawn, size: int
) -> tuple[Drawn, Array, Array]:
    """Draw as ``draw``, inside a program; see ``opened``."""
    left_at = drawing.exclusion.inactive.left_at
    given = drawn.stream, drawing.strata, drawing.in_play, left_at
    stream, indices, weights = weighted_subset(*given, size, share_drawn(own))
    return drawn._replace(stream=stream), indices, weights


def observe_inside(own: ExclusionConfig, drawn: Drawn, indices: Array, losses: Array) -> Drawn:
    """Note the losses [b] of a training step, as ``observe``, inside a program; see ``opened``."""
    losses = _checks.handed_back(losses, indices)
    noted, finite = handed_back(drawn.noted, drawn.all_finite, indices, losses, own.threshold)
    return drawn._replace(noted=noted, all_finite=finite)
