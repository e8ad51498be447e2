"""Selection in parts, for data that one exact run cannot afford or that only comes as a stream.

Two rounds (GreeDi; Mirzasoleiman et al., Distributed submodular maximization, NeurIPS 2013): exact
greedy chooses ``m`` examples in each part, then ``m`` among all picks of the parts, judged by a random
sample of the data of one part's size, as the paper does for objectives that are sums over examples.
With rows assigned to parts at random the outcome is in expectation at least ``(1 - 1/e) / 2`` of the
best (Barbosa et al., ICML 2015; Mirrokni and Zadimoghaddam, STOC 2015), up to the sampling error.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks, metrics
from crest_jax.class_greedy import Settings, choose_by_class_compiled, nearest_picks, sorted_on_host
from crest_jax.devices import gather, in_all_processes
from crest_jax.planning import DEFAULT_BUDGET, Plan, Shape, make_plan, part_rows, quotas_for
from crest_jax.types import Array, Coreset, PyTree

Progress = Callable[[int], None]  # called with the number of rows that are done


def choose_in_parts(
    embeddings: PyTree,
    labels: np.ndarray,
    counts: np.ndarray,
    quotas: np.ndarray,
    *,
    size: int,
    metric: str,
    plan: Plan,
    key: Array,
) -> Coreset:
    """Select from arrays in memory; rows are assigned to parts at random, each class evenly.

    Args:
      embeddings: [n, d] or ``Factored``.
      labels: [n], int32.
      counts: [c], examples of each class.
      quotas: [c], picks of each class, summing to ``size``.
      size: picks in all.
      metric: see ``select_coreset``.
      plan: says how large a part is.
      key: PRNG key.

    Returns:
      See ``select_coreset``; the gains are estimates from the sample, scaled to ``n``.
    """
    rng = _generator(key)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    wanted = quotas > 0
    most = int((counts[wanted] // quotas[wanted]).min())  # each part must hold every quota
    parts = max(1, min(-(-len(labels) // plan.part), most))
    picks, top = [], 0.0
    for part in range(parts):
        rows = np.sort(order[part::parts])
        pool = jax.tree.map(lambda x, rows=rows: x[rows], embeddings)
        local = _choose(pool, labels[rows], None, None, quotas, metric, plan.capacity, 0.0)
        picks.append(rows[np.asarray(local.picks)])
        top = max(top, float(local.top))
    union = np.sort(np.concatenate(picks))
    sample = np.sort(order[int(rng.integers(parts)) :: parts])
    pool, clients = (jax.tree.map(lambda x, rows=rows: x[rows], embeddings) for rows in (union, sample))
    last = _choose(pool, labels[union], clients, labels[sample], quotas, metric, plan.capacity, top)
    chosen = union[np.asarray(last.picks)]
    heads = jax.tree.map(lambda x: x[chosen], embeddings)
    slots, values = nearest_picks(
        embeddings, jnp.asarray(labels), heads, jnp.asarray(labels[chosen]), metric_name=metric
    )
    slots = slots.at[chosen].set(jnp.arange(size, dtype=jnp.int32))
    weights = np.bincount(np.asarray(slots), minlength=size)
    objective = np.maximum(float(last.top) - np.asarray(values, np.float64), 0.0).sum()
    return _coreset(chosen, weights, np.asarray(last.gains) * (len(labels) / len(sample)), objective)


def select_coreset_stream(
    chunks: Any,
    size: int,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    part: int | None = None,
    key: Array | None = None,
    progress: Progress | None = None,
    across_processes: bool = False,
) -> Coreset:
    """Select from embeddings that need not fit into memory, by the method "partitioned".

    Parts are runs of consecutive rows, so the guarantee in expectation asks for rows in random order;
    sorted data should be shuffled first. What stays in memory: one part, the picks of all parts and a
    sample of one part's size.

    Args:
      chunks: an array-like [n, d] that is sliced (``numpy.memmap``, say) and read twice, or an iterable
        of arrays [b, d], or of pairs (embeddings [b, d], labels [b]), read once.
      size: number of picks ``m``.
      labels: [n], integer classes, for an array-like; an iterable brings its own.
      num_classes: number of classes; needed when an iterable brings labels, else the highest plus one.
      metric: "euclidean", "sqeuclidean", "cosine" or "exponential".
      part: rows per part; None takes eight times ``size`` within [8192, 65536].
      key: PRNG key of the sample; None takes ``jax.random.key(0)``.
      progress: called with the number of rows that are done, after each part.
      across_processes: each process passes rows of its own, any number of them, and all get the
        coreset of all rows. They talk once about picks and samples, and once about weights.

    Returns:
      A ``Coreset`` whose indices count rows in the order read, those of process 0 first. Weights sum
      to ``n``: for an array-like the rows nearest to each pick; for an iterable the weights that the
      parts gave their picks, added up at the nearest final pick. The objective is over all rows, or
      estimated from the sample; gains are estimates from the sample.

    Raises:
      ValueError: when there are fewer rows than ``size``, on embeddings that are NaN or infinite, on
        chunks of different widths, or on labels as in ``select_coreset``; in every process when the
        rows of one are bad.

    Example:
      >>> rows = np.random.default_rng(0).normal(size=(3_000, 4)).astype(np.float32)
      >>> coreset = select_coreset_stream((rows[i : i + 500] for i in range(0, 3_000, 500)), 10)
      >>> coreset.indices.shape, float(coreset.weights.sum())
      ((10,), 3000.0)
    """
    _checks.positive_int("size", size)
    _checks.require(
        metric in metrics.METRICS and metric != "precomputed",
        f"metric is {metric!r} but must be one of {', '.join(metrics.METRICS[:-1])}; choose one.",
    )
    width = part_rows(size) if part is None else part
    _checks.positive_int("part", width)
    _checks.require(
        width >= size,
        f"part is {width} but must be at least size, which is {size}; raise part.",
    )
    joined = across_processes and jax.process_count() > 1
    process = jax.process_index() if joined else 0  # each ranks its rows by numbers of its own
    array = hasattr(chunks, "shape") and hasattr(chunks, "__getitem__")

    def first_round() -> tuple[_Rounds, Any]:
        own, classes = labels, num_classes
        if array:
            if own is not None:
                own = _checks.labels_valid(own, len(chunks), classes)
                classes = int(own.max(initial=0)) + 1 if classes is None else classes
            pieces: Iterable[Any] = _slices(chunks, own, width)
        else:
            _checks.require(
                own is None,
                "labels are given beside an iterable of chunks, which cannot be lined up; let the "
                "iterable yield pairs (embeddings, labels).",
            )
            pieces = chunks
        rounds = _Rounds(size, metric, width, 1 if classes is None else classes, key, process)
        for rows, strata in _rebuffered(pieces, width, rounds.classes):
            rounds.add(rows, strata)
            if progress is not None:
                progress(rounds.count)
        return rounds, own

    if joined:
        rounds, own = in_all_processes(first_round, "rows")
        rounds.join()
    else:
        rounds, own = first_round()
    return rounds.finish(_slices(chunks, own, width) if array else None, progress)


class _Rounds:
    """The two rounds over a stream, or over that of each process."""

    def __init__(
        self, size: int, metric: str, part: int, classes: int, key: Array | None, process: int
    ) -> None:
        self.size, self.metric, self.part, self.classes = size, metric, part, classes
        self.rng = _generator(jax.random.key(0) if key is None else key, process)
        self.count = 0
        self.first = 0  # row of all that this process's first one is
        self.joined = False
        self.top = 0.0
        self.totals = np.zeros(classes, np.int64)
        self.held: list[tuple[np.ndarray, ...]] = []  # rows, labels, positions, weights of the picks
        self.sample: tuple[np.ndarray, ...] | None = None  # keys, rows, labels
        plan_shape = Shape(part, 1, part, size, size, part / size, 1, 1, False)
        self.capacity = make_plan(plan_shape, "lazy", DEFAULT_BUDGET, 0.1).capacity

    def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Choose in one part and keep its picks and some of its rows."""
        positions = self.count + np.arange(len(rows))
        self.count += len(rows)
        counts = np.bincount(labels, minlength=self.classes)
        self.totals += counts
        keys = self.rng.random(len(rows))
        pooled: tuple[np.ndarray, ...] = (keys, rows, labels)
        if self.sample is not None:
            pooled = tuple(np.concatenate(both) for both in zip(self.sample, pooled, strict=True))
        kept = np.argsort(pooled[0])[: self.part]
        self.sample = tuple(values[kept] for values in pooled)
        groups, classes = self._groups(labels)
        size = min(self.size, len(rows))  # the last part may be small
        quotas = quotas_for(np.bincount(groups, minlength=classes)[None], size, "proportional")[0]
        found = _choose(rows, groups, None, None, quotas, self.metric, self.capacity, 0.0)
        self.top = max(self.top, float(found.top))
        picks = np.asarray(found.picks)
        slots = np.asarray(found.nearest)
        weights = np.bincount(slots[slots >= 0], minlength=size).astype(np.float64)
        weights *= len(rows) / weights.sum()  # rows of a class too small for a pick are spread
        self.held.append((rows[picks], labels[picks], positions[picks], weights))

    def join(self) -> None:
        """Take in what the first round of every other process found."""
        columns = 0 if self.sample is None else self.sample[1].shape[1]
        said = np.array([self.size, self.part, self.classes, columns, self.count], np.int64)
        all_said = np.stack(gather(said))
        _checks.require(
            bool((all_said[:, :4] == all_said[0, :4]).all() and all_said[:, 4].min() > 0),
            "size, part, number of classes, width of the embeddings and number of rows are "
            f"{all_said.tolist()} in the processes but all except the last must agree, and each "
            "process must hold a row; pass num_classes, and rows to every process.",
        )
        assert self.sample is not None
        counts, process = all_said[:, 4], jax.process_index()
        self.first, self.count = int(counts[:process].sum()), int(counts.sum())
        rows, labels, positions, weights = (np.concatenate(x) for x in zip(*self.held, strict=True))
        held = (rows, labels, positions + self.first, weights)
        self.held = [tuple(np.concatenate(gather(values)) for values in held)]
        pooled = [np.concatenate(gather(values)) for values in self.sample]
        kept = np.argsort(pooled[0])[: self.part]
        self.sample = tuple(values[kept] for values in pooled)
        self.top = float(np.concatenate(gather(np.array([self.top]))).max())
        self.totals = np.stack(gather(self.totals)).sum(axis=0)
        self.joined = True

    def _groups(self, labels: np.ndarray) -> tuple[np.ndarray, int]:
        """Classes, or one group when there are fewer than two picks a class."""
        if self.size < 2 * self.classes:
            return np.zeros_like(labels), 1
        return labels, self.classes

    def finish(self, again: Iterator[Any] | None, progress: Progress | None) -> Coreset:
        """Choose among the picks; count weights over ``again`` if the data can be read again."""
        _checks.require(
            self.count >= self.size,
            f"size is {self.size} but the stream held {self.count} examples and no example is chosen "
            f"twice; ask for at most {self.count}.",
        )
        rows, labels, positions, held = (np.concatenate(part) for part in zip(*self.held, strict=True))
        assert self.sample is not None
        _, sample, sample_labels = self.sample
        groups, classes = self._groups(labels)
        sample_groups, _ = self._groups(sample_labels)
        totals = self.totals if classes > 1 else np.array([self.count])
        quotas = quotas_for(totals[None], self.size, "proportional")[0]
        last = _choose(
            rows, groups, sample, sample_groups, quotas, self.metric, self.capacity, self.top
        )
        picks = np.asarray(last.picks)
        chosen, heads, head_groups = positions[picks], rows[picks], groups[picks]
        gains = np.asarray(last.gains) * (self.count / len(sample))
        if again is None:
            slots, _ = _nearest(rows, groups, heads, head_groups, self.metric)
            slots[picks] = np.arange(self.size)
            weights = np.bincount(slots, held, minlength=self.size)
            return _coreset(chosen, weights, gains, float(gains.sum()))

        def count() -> np.ndarray:
            """Count this process's rows at their picks; the last number is their objective."""
            found, first = np.zeros(self.size + 1), self.first
            for part, own in again:
                slots, values = _nearest(part, self._groups(own)[0], heads, head_groups, self.metric)
                here = (chosen >= first) & (chosen < first + len(part))
                slots[chosen[here] - first] = np.flatnonzero(here)
                found[:-1] += np.bincount(slots, minlength=self.size)
                found[-1] += np.maximum(float(last.top) - values, 0.0).sum()
                first += len(part)
                if progress is not None:
                    progress(first - self.first)
            return found

        if self.joined:
            found = np.stack(gather(in_all_processes(count, "rows"))).sum(axis=0)
        else:
            found = count()
        return _coreset(chosen, found[:-1], gains, float(found[-1]))


def _nearest(
    rows: np.ndarray, labels: np.ndarray, heads: np.ndarray, head_labels: np.ndarray, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest picks of some rows, padded to one shape per stream."""
    count = len(rows)
    padding = -count % 1024
    rows, labels = np.pad(rows, ((0, padding), (0, 0))), np.pad(labels, (0, padding))
    slots, values = nearest_picks(
        jnp.asarray(rows), jnp.asarray(labels), jnp.asarray(heads), jnp.asarray(head_labels),
        metric_name=metric,
    )  # fmt: skip
    return np.array(slots)[:count], np.asarray(values, np.float64)[:count]


def _slices(array: Any, labels: np.ndarray | None, width: int) -> Iterator[Any]:
    for first in range(0, len(array), width):
        rows = np.asarray(array[first : first + width], np.float32)
        own = np.zeros(len(rows), np.int32) if labels is None else labels[first : first + width]
        yield rows, own


def _rebuffered(
    chunks: Iterable[Any], width: int, classes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a stream into parts of ``width`` rows, checked; the last part holds what remains."""
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    held = 0
    seen = 0
    columns = None
    for chunk in chunks:
        pair = isinstance(chunk, tuple)
        values = np.asarray(chunk[0] if pair else chunk, np.float32)
        _checks.require(
            values.ndim == 2 and (columns is None or values.shape[1] == columns),
            f"a chunk after {seen} rows has shape {values.shape} but all must have shape "
            f"[b, {columns or 'd'}]; make the chunks alike.",
        )
        columns = values.shape[1]
        if not len(values):
            continue
        try:
            _checks.embeddings_finite(values)
        except ValueError as error:
            raise ValueError(f"in the chunk after {seen} rows: {error}") from None
        own = np.zeros(len(values), np.int32)
        if pair:
            own = _checks.labels_valid(chunk[1], len(values), classes)
        seen += len(values)
        rows.append(values)
        labels.append(own)
        held += len(values)
        while held >= width:
            joined, joined_labels = np.concatenate(rows), np.concatenate(labels)
            yield joined[:width], joined_labels[:width]
            rows, labels = [joined[width:]], [joined_labels[width:]]
            held -= width
    if held:
        yield np.concatenate(rows), np.concatenate(labels)


def _generator(key: Array, process: int = 0) -> np.random.Generator:
    words = np.asarray(jax.random.key_data(key)).astype(np.uint32).ravel().tolist()
    return np.random.default_rng([*words, process] if process else words)


def _coreset(chosen: np.ndarray, weights: np.ndarray, gains: np.ndarray, objective: float) -> Coreset:
    return Coreset(
        jnp.asarray(chosen, jnp.int32),
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(gains, jnp.float32),
        jnp.float32(objective),
    )


def _choose(
    pool: PyTree,
    labels: np.ndarray,
    clients: PyTree,
    client_labels: np.ndarray | None,
    quotas: np.ndarray,
    metric: str,
    capacity: int,
    top: float,
) -> Any:
    """Run exact greedy on a pool, to cover itself or some clients (then ``top`` is needed)."""
    classes = len(quotas)
    count = len(labels)
    # One shape for all parts of nearly the same size, so that they share a compiled program.
    padding = -count % 512
    pool = jax.tree.map(lambda x: jnp.pad(jnp.asarray(x), ((0, padding), (0, 0))), pool)
    counts = np.bincount(labels, minlength=classes)
    members, block = sorted_on_host(labels, counts, padding), int(counts.max())
    same = client_labels is None
    client_members, client_block = members, block
    if client_labels is not None:
        extra = -len(client_labels) % 512
        clients = jax.tree.map(lambda x: jnp.pad(jnp.asarray(x), ((0, extra), (0, 0))), clients)
        counts = np.bincount(client_labels, minlength=classes)
        client_members, client_block = sorted_on_host(client_labels, counts, extra), int(counts.max())
    settings = Settings(
        int(quotas.sum()),
        int(quotas.max()),
        _rounded(block),
        _rounded(client_block),
        metric,
        capacity,
        0,
    )
    return choose_by_class_compiled(
        pool, members, None if same else clients, client_members, jnp.asarray(quotas, jnp.int32),
        jnp.float32(jnp.nan if same else top), jax.random.key(0), settings=settings,
    )  # fmt: skip


def _rounded(block: int) -> int:
    return -(-block // 512) * 512
