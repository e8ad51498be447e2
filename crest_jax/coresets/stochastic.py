"""Stochastic greedy: each pick is the best of a random sample."""

import jax
import jax.numpy as jnp

from crest_jax.coresets.greedy import first_largest
from crest_jax.coresets.lazy import begun, computed_cover, ended, exact_gain, first_run
from crest_jax.coresets.oracles import Oracle
from crest_jax.coresets.rules import NO_RULES, Rules
from crest_jax.coresets.run import Run
from crest_jax.types import Array


def stochastic_greedy(
    oracle: Oracle,
    selectable: Array,
    quota: Array,
    size: int,
    draws: int,
    key: Array,
    rules: Rules = NO_RULES,
) -> Run:
    """Choose each candidate as the best of ``draws`` random ones.

    Upper bounds of their gains say which may be the best; exact gains decide.

    With ``draws = (m / quota) ln(1 / epsilon)`` the objective is at least ``1 - 1/e - epsilon`` of the
    best in expectation (Mirzasoleiman et al., Lazier than lazy greedy, AAAI 2015; their proof holds for
    draws with replacement).

    Args:
      oracle: see ``lazy_greedy``.
      selectable: [m], bool.
      quota: [], int32, as in ``lazy_greedy``.
      size: static length of the results.
      draws: static, candidates drawn for each pick; rounded up to a multiple of 64.
      key: PRNG key.
      rules: as in ``lazy_greedy``, without costs and ``least``.

    Returns:
      See ``lazy_greedy``.
    """
    run = first_run(*oracle.start(), selectable, quota, size, rules)
    run = run._replace(bounds=jnp.where(selectable, 0.0, -1.0))  # only who is free matters here
    cover = computed_cover(oracle)
    count = jnp.sum(selectable, dtype=jnp.int32)
    order = jnp.argsort(~selectable, stable=True).astype(jnp.int32)  # the selectable ones first

    blocks = -(-draws // 64)

    def pick(run: Run) -> Run:
        own = jax.random.fold_in(key, run.taken)
        places = jax.random.randint(own, (blocks, 64), jnp.int32(0), count, jnp.int32)
        rows = order[places]
        bounds = jax.lax.map(lambda block: oracle.bounds(block, run.cover), rows).reshape(-1)
        rows = rows.reshape(-1)
        bounds = jnp.where(run.bounds[rows] < 0, -1.0, bounds)

        def unsettled(state: tuple[Array, Array]) -> Array:
            gains, known = state
            best = first_largest(gains)
            return (gains[best] > 0) & ~known[best]

        def evaluate(state: tuple[Array, Array]) -> tuple[Array, Array]:
            gains, known = state
            best = first_largest(gains)
            gain = exact_gain(oracle, rows[best], run.cover)
            return gains.at[best].set(gain), known.at[best].set(True)

        gains, _ = jax.lax.while_loop(unsettled, evaluate, (bounds, jnp.zeros(len(rows), bool)))
        # Only if all draws are taken already: the lowest row that is free.
        spare = first_largest(run.bounds)
        best = first_largest(gains)
        row = jnp.where(gains[best] < 0, spare, rows[best])
        gain = exact_gain(oracle, row, run.cover)
        covered, nearest = cover(run, row)
        run = run._replace(
            cover=covered,
            nearest=nearest,
            bounds=run.bounds.at[row].set(-1.0),
            picks=run.picks.at[run.taken].set(row),
            gains=run.gains.at[run.taken].set(gain),
            taken=run.taken + 1,
            evaluations=run.evaluations + 64 * blocks,
        )
        return ended(run, oracle.weights, rules)

    run = begun(run, oracle, rules)
    return jax.lax.while_loop(lambda run: run.taken < run.quota, pick, run)
