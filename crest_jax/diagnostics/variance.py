"""What a coreset saves in variance at given parameters, and how redundant and learned the data are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.algorithm.config import CrestConfig
from crest_jax.coresets.mini_batch import medoids
from crest_jax.data.classes import classes_in
from crest_jax.data.exclusion import ExclusionConfig
from crest_jax.data.sampler import next_subset, open_stream
from crest_jax.data.strata import make_strata
from crest_jax.gradients.chunked import embed_rows
from crest_jax.gradients.embeddings import logit_gradients
from crest_jax.types import ApplyFn, Array, LossFn, ModelState, Params, Source

SUBSETS = (2, 4, 8)  # r over m, compared by the variance that they leave
POOL = 4096  # examples on which variance and redundancy are measured
DRAWS = 64  # mini-batches of each kind


class Redundancy(NamedTuple):
    """What was measured at given parameters.

    Attributes:
      variance: by subset size r in examples, the variance of a coreset's mean embedding over that of a
        stratified batch's, a ratio.
      learned: share in [0, 1] of the examples whose loss is below the threshold of exclusion.
      covered: share, at most 1, of a subset's spread (r = 4m) that its m medoids stand for.
    """

    variance: dict[int, float]
    learned: float
    covered: float


def measure_redundancy(
    apply_fn: ApplyFn,
    loss_fn: LossFn,
    source: Source,
    config: CrestConfig,
    trained: tuple[Params, ModelState],
    key: Array,
) -> Redundancy:
    """Measure variance, redundancy and the share learned on a pool of examples, by logit gradients.

    Args:
      apply_fn: the model.
      loss_fn: per-example losses.
      source: the data.
      config: settings, for the size of a mini-batch and the threshold of exclusion.
      trained: parameters and model state.
      key: PRNG key.
    """
    partition, m = classes_in(source), config.batch_size
    num_classes, codes = partition.number, partition.codes
    size = min(POOL, len(source))
    rows = next_subset(open_stream(key, num_classes), make_strata(codes, num_classes), size)[1]
    embed_fn = jax.jit(logit_gradients(apply_fn, loss_fn))
    embeddings, losses = embed_rows(embed_fn, *trained, source, np.asarray(rows))
    labels = codes[np.asarray(rows)]
    pool, strata = jnp.asarray(embeddings), make_strata(labels, num_classes)
    classes = jnp.asarray(labels, jnp.int32)
    stream = open_stream(key, num_classes)
    centre = pool.mean(0)

    def spread(count: int, coresets: bool) -> tuple[float, float]:
        nonlocal stream
        squares, shares = [], []
        for _ in range(DRAWS):
            stream, drawn = next_subset(stream, strata, count)
            if not coresets:
                squares.append(float(jnp.sum(jnp.square(pool[drawn].mean(0) - centre))))
                continue
            mean, share = _coreset_mean(pool[drawn], classes[drawn], size=m, num_classes=num_classes)
            squares.append(float(jnp.sum(jnp.square(mean - centre))))
            shares.append(float(share))
        return float(np.mean(squares)), float(np.mean(shares)) if shares else 0.0

    base, _ = spread(m, coresets=False)
    variance, covered = {}, 0.0
    for factor in SUBSETS:
        if factor * m > size:
            break
        left, covered_now = spread(factor * m, coresets=True)
        variance[factor * m] = left / base if base > 0 else 1.0
        covered = covered_now if factor <= SUBSETS[1] else covered
    variance = variance or {config.subset_size: 1.0}
    own = config.exclusion or ExclusionConfig.recommended()
    return Redundancy(variance, float(np.mean(losses < own.threshold)), covered)


@jax.jit
def _distances(points: Array, picks: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(points[:, None] - points[picks][None]), axis=-1))


def _coreset_mean(points: Array, labels: Array, *, size: int, num_classes: int) -> tuple[Array, Array]:
    """The weighted mean of a coreset, and the share of the spread of the points that it stands for."""
    coreset = medoids(points, labels, size=size, num_classes=num_classes)
    total = jnp.dot(coreset.weights, points[coreset.indices], precision="highest")
    mean = total / jnp.sum(coreset.weights)
    left = jnp.mean(jnp.min(_distances(points, coreset.indices), axis=1))
    whole = jnp.mean(jnp.linalg.norm(points - points.mean(0)[None], axis=1))
    return mean, 1.0 - left / whole
