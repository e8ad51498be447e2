"""Selection from rows that come as a stream or do not fit into memory, by the method "partitioned"."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax import _checks
from crest_jax.coresets.by_class import nearest_picks
from crest_jax.coresets.frame import Frame
from crest_jax.coresets.inputs import restored
from crest_jax.coresets.metrics import METRICS, Metric, Points, check_gamma, pad_rows, take_rows
from crest_jax.coresets.numbers import largest_of, real_array
from crest_jax.coresets.partition import classes_shaped
from crest_jax.coresets.partitioned import choose_in_part, coreset_of, generator
from crest_jax.coresets.plan import part_rows, plan_of_part
from crest_jax.coresets.select import not_forked
from crest_jax.data.classes import as_named, classes_of
from crest_jax.data.devices import gather, in_all_processes, share_of_default_memory
from crest_jax.data.quotas import covered_as_a_whole, proportional_quotas, quotas_within
from crest_jax.types import Array, Coreset, Factored

Progress = Callable[[int], None]  # called with the number of rows that are done


def select_coreset_stream(
    chunks: Any,
    size: int,
    *,
    labels: Any = None,
    num_classes: int | None = None,
    metric: str = "euclidean",
    gamma: float | None = None,
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
      labels: [n], the class of each row, whole numbers or strings, for an array-like; an iterable
        brings its own, whole numbers.
      num_classes: labels from it on are an error; None allows all.
      metric: as in ``select_coreset``, any but "precomputed".
      gamma: of the metric "rbf"; see ``select_coreset``.
      part: rows per part; None takes eight times ``size`` within [8192, 65536].
      key: PRNG key of the sample; None takes ``jax.random.key(0)``.
      progress: called with the number of rows that are done, after each part.
      across_processes: each process passes rows of its own, any number of them, and all get the
        coreset of all rows. They talk once about picks and samples, and once about weights.

    Returns:
      A ``Coreset`` whose indices count rows in the order read, those of process 0 first. Weights sum
      to ``n``: for an array-like the rows nearest to each pick; for an iterable the weights that the
      parts gave their picks, added up at the nearest final pick. The objective is over all rows, or
      estimated from the sample; gains are estimates from the sample. The similarity is the largest
      distance within a class of any part minus the distance.

    Raises:
      ValueError: when there are fewer rows than ``size``, on embeddings that are NaN or infinite, on
        chunks of different widths, or on labels as in ``select_coreset``, and on strings in chunks or
        across processes; in every process when the rows of one are bad.

    Example:
      >>> rows = np.random.default_rng(0).normal(size=(3_000, 4)).astype(np.float32)
      >>> coreset = select_coreset_stream((rows[i : i + 500] for i in range(0, 3_000, 500)), 10)
      >>> coreset.indices.shape, float(coreset.weights.sum())
      ((10,), 3000.0)
    """
    _checks.positive_int("size", size)
    _checks.one_of("metric", metric, METRICS[:-1])
    check_gamma(metric, gamma)
    width = part_rows(size) if part is None else part
    _checks.positive_int("part", width)
    _checks.require(
        width >= size, f"part is {width} but must be at least size, which is {size}; raise part."
    )
    not_forked()
    key = _checks.default_key(key)
    if hasattr(chunks, "toarray") or isinstance(chunks, (str, bytes, dict)) or chunks is None:
        real_array(chunks, "chunks")  # says what is wrong
    _checks.require(
        not isinstance(chunks, Factored),
        "chunks are a Factored pair but must be an array [n, d] or an iterable of arrays [b, d]; pass "
        "the outer products, or call select_coreset.",
    )
    joined = across_processes and jax.process_count() > 1
    process = jax.process_index() if joined else 0  # each ranks its rows by numbers of its own
    array = hasattr(chunks, "shape") and hasattr(chunks, "__getitem__")

    def first_round() -> tuple[_Rounds, np.ndarray | None]:
        own = None
        if array:
            if labels is not None:
                found = classes_shaped(labels, (len(chunks),), num_classes)
                own = as_named(found) if joined else found.codes
            pieces: Iterable[Any] = _slices(chunks, own, width)
        else:
            _checks.require(
                labels is None,
                "labels are given beside an iterable of chunks, which cannot be lined up; let the "
                "iterable yield pairs (embeddings, labels).",
            )
            pieces = chunks
        rounds = _Rounds(size, Frame(metric, gamma), width, key, process)
        for rows, strata in _rebuffered(pieces, width, num_classes):
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


class _Held(NamedTuple):
    """Picks of the parts, or rows of the sample; leaves [k]."""

    points: Points
    labels: np.ndarray  # int64
    positions: np.ndarray  # int64, of picks: rows of all
    weights: np.ndarray  # of picks: rows that they stand for; of the sample: random numbers


def _together(held: list[_Held]) -> _Held:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *held)


class _Rounds:
    """The two rounds over a stream, or over that of each process."""

    def __init__(self, size: int, frame: Frame, part: int, key: Array, process: int) -> None:
        self.size, self.part = size, part
        self.frame = frame
        self.rng = generator(key, process)
        self.count = 0
        self.first = 0  # row of all that this process's first one is
        self.joined = False
        self.top = 0.0
        self.totals: dict[int, int] = {}  # rows of each label
        self.held: list[_Held] = []
        self.sample: _Held | None = None
        self.plan = plan_of_part(part, size, share_of_default_memory())

    def add(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Choose in one part and keep its picks and some of its rows."""
        positions = self.count + np.arange(len(rows))
        points = self.frame.points(rows, self.count)
        self.count += len(rows)
        classes = classes_of(labels)
        counts = np.bincount(classes.codes)
        self._count(np.stack([classes.names, counts], axis=1))
        keys = self.rng.random(len(rows))
        pooled = _Held(points, labels, positions, keys)
        if self.sample is not None:
            pooled = _together([self.sample, pooled])
        kept = np.argsort(pooled.weights)[: self.part]
        self.sample = jax.tree.map(lambda leaf: leaf[kept], pooled)
        size = min(self.size, len(rows))  # the last part may be small
        groups, counts = self._groups(classes.codes, counts)
        # Rounded up, and at least one, so that the parts together hold as many of each class as it may
        # get in the end.
        quotas = np.maximum(-(-size * counts // len(rows)), proportional_quotas(counts, size, np))
        found = choose_in_part(points, groups, quotas, self.frame.metric, self.plan)
        self.top = max(self.top, float(found.top))
        picks = np.asarray(found.picks)
        nearest = np.asarray(found.nearest)[: len(rows)]
        if self.frame.metric.signed:  # rows that nothing covers count at the most similar pick too
            heads = take_rows(points, picks)
            nearest, _ = _nearest(
                points, groups, heads=heads, groups=groups[picks], metric=self.frame.metric
            )
            nearest[picks] = np.arange(len(picks))
        weights = np.bincount(nearest, minlength=len(picks)).astype(np.float64)
        self.held.append(_Held(take_rows(points, picks), labels[picks], positions[picks], weights))

    def join(self) -> None:
        """Take in what the first round of every other process found."""
        columns = 0 if self.sample is None else self.sample.points.parts[0].shape[1]
        said = np.array([self.size, self.part, columns, self.count], np.int64)
        all_said = np.stack(gather(said))
        _checks.require(
            bool((all_said[:, :3] == all_said[0, :3]).all() and all_said[:, 3].min() > 0),
            "size, part, width of the embeddings and number of rows are "
            f"{_checks.brief(all_said.tolist())} in the processes but all except the last must agree, "
            "and each process must hold a row; pass the same to every process.",
        )
        counts, process = all_said[:, 3], jax.process_index()
        self.first, self.count = int(counts[:process].sum()), int(counts.sum())
        assert self.sample is not None
        frame = self.frame.common(np.stack(gather(self.frame.facts())))
        held = _together(self.held)
        held = held._replace(positions=held.positions + self.first)

        both = [held, self.sample]

        def moved() -> list[_Held]:
            return [x._replace(points=self.frame.moved(x.points, frame, self.first)) for x in both]

        top = self.frame.moved_value(self.top, frame)
        self.top = float(np.concatenate(gather(np.array([top]))).max())
        held, self.sample = (
            jax.tree.map(lambda leaf: np.concatenate(gather(leaf)), own)
            for own in in_all_processes(moved, "rows")
        )
        self.held, self.frame = [held], frame
        kept = np.argsort(self.sample.weights)[: self.part]
        self.sample = jax.tree.map(lambda leaf: leaf[kept], self.sample)
        numbers = np.array([*self.totals.items()], np.int64).reshape(-1, 2)
        self.totals = {}
        self._count(np.concatenate(gather(numbers)))
        self.joined = True

    def _count(self, rows_of_labels: np.ndarray) -> None:
        """Add rows of labels, pairs [k, 2]."""
        for label, number in rows_of_labels.tolist():
            self.totals[label] = self.totals.get(label, 0) + number

    def _groups(self, codes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Classes, or one group where they are left aside."""
        if covered_as_a_whole(counts, self.size, np):
            return np.zeros_like(codes), np.array([counts.sum()])
        return codes, counts

    def finish(self, again: Iterator[Any] | None, progress: Progress | None) -> Coreset:
        """Choose among the picks; count weights over ``again`` if the data can be read again."""
        _checks.require(
            self.count >= self.size,
            f"size is {self.size} but the stream held {self.count} examples and no example is chosen "
            f"twice; ask for at most {self.count}.",
        )
        held = _together(self.held)
        assert self.sample is not None
        names = np.array(sorted(self.totals), np.int64)
        totals = np.array([self.totals[name] for name in names.tolist()])

        def grouped(labels: np.ndarray) -> np.ndarray:
            return self._groups(np.searchsorted(names, labels).astype(np.int32), totals)[0]

        # A class that the sample missed is judged by its picks.
        missed = ~np.isin(held.labels, self.sample.labels)
        clients = _together([self.sample, jax.tree.map(lambda leaf: leaf[missed], held)])
        groups = grouped(held.labels)
        final = self._groups(groups, totals)[1]
        quotas = quotas_within(final, self.size, np.bincount(groups, minlength=len(final)))
        metric = self.frame.metric
        last = choose_in_part(
            held.points, groups, quotas, metric, self.plan,
            clients=clients.points, client_labels=grouped(clients.labels), top=self.top,
        )  # fmt: skip
        picks = np.asarray(last.picks)
        chosen, heads, head_groups = held.positions[picks], take_rows(held.points, picks), groups[picks]
        gains = np.asarray(last.gains) * (self.count / len(clients.labels))

        nearest = partial(_nearest, heads=heads, groups=head_groups, metric=metric)

        def count() -> np.ndarray:
            """Count this process's rows at their picks; the last number is their objective."""
            assert again is not None
            found, first = np.zeros(self.size + 1), self.first
            for part, own in again:
                rows = self.frame.points(np.asarray(real_array(part)), first)
                codes = grouped(own)
                slots, values = nearest(rows, codes)
                here = (chosen >= first) & (chosen < first + len(part))
                slots[chosen[here] - first] = np.flatnonzero(here)
                covered = quotas[codes] > 0  # rows of classes without a pick count at all alike
                found[:-1] += np.bincount(slots[covered], minlength=self.size)
                found[-1] += np.maximum(float(last.top) - values[covered], 0.0).sum()
                first += len(part)
                if progress is not None:
                    progress(first - self.first)
            return found

        if again is None:
            slots, _ = nearest(held.points, groups)
            slots[picks] = np.arange(self.size)
            weights = np.bincount(slots, held.weights * (quotas[groups] > 0), minlength=self.size)
            objective = float(gains.sum())
        else:
            found = in_all_processes(count, "rows") if self.joined else count()
            found = np.stack(gather(found)).sum(axis=0) if self.joined else found
            weights, objective = found[:-1], float(found[-1])
        weights = weights * (self.count / weights.sum())
        most = None if self.frame.metric.signed else float(last.top) * self.count
        return restored(coreset_of(chosen, weights, gains, objective, most), self.frame.pool())


def _nearest(
    points: Points, own: np.ndarray, *, heads: Points, groups: np.ndarray, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Return the picks nearest to some rows, and how far; padded to one shape per stream."""
    count = len(own)
    filled = pad_rows((points, own), -count % 1024)
    heads = jax.tree.map(jnp.asarray, heads)
    slots, values = nearest_picks(*filled, heads, jnp.asarray(groups), metric)
    return np.array(slots)[:count], np.asarray(values, np.float64)[:count]


def _slices(array: Any, labels: np.ndarray | None, width: int) -> Iterator[Any]:
    for first in range(0, len(array), width):
        rows = array[first : first + width]
        own = np.zeros(len(rows), np.int64) if labels is None else labels[first : first + width]
        yield rows, own


def _rebuffered(
    chunks: Iterable[Any], width: int, num_classes: int | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a stream into parts of ``width`` rows, checked; the last part holds what remains."""
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    held = seen = 0
    columns, labelled = None, None
    for chunk in chunks:
        pair = _is_pair(chunk)
        given = chunk[0] if pair else chunk
        values = np.asarray(_named(seen, real_array, given))
        _checks.require(
            values.ndim == 2
            and (columns is None or values.shape[1] == columns)
            and values.shape[1] > 0,
            f"a chunk after {seen} rows has shape {values.shape} but all must have shape "
            f"[b, {columns or 'd'}]; make the chunks alike.",
        )
        columns = values.shape[1]
        if not len(values):
            continue
        _named(seen, largest_of, values, False)
        _checks.require(
            labelled is None or labelled == pair,
            f"the chunk after {seen} rows comes {'with' if pair else 'without'} labels, unlike those "
            "before; make the chunks alike.",
        )
        labelled = pair
        own = np.zeros(len(values), np.int64)
        if pair:
            own = _named(seen, _whole_numbers, chunk[1], num_classes)
            _checks.require(
                own.shape == (len(values),),
                f"the labels of the chunk after {seen} rows have shape {own.shape} but must have shape "
                f"({len(values)},); pass one class per row.",
            )
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


def _is_pair(chunk: Any) -> bool:
    """Return whether a chunk is (embeddings, labels), as a tuple or, from a data loader, as a list."""
    if isinstance(chunk, tuple):
        _checks.require(
            len(chunk) == 2,
            f"a chunk is a tuple of {len(chunk)} but must be an array [b, d] or a pair (embeddings, "
            "labels); yield one of these.",
        )
        return True
    lists = isinstance(chunk, list) and len(chunk) == 2
    return lists and np.ndim(chunk[0]) == 2 and np.ndim(chunk[1]) == 1


def _named(seen: int, work: Callable[..., Any], *args: Any) -> Any:
    """Do work on a chunk, and say which chunk it was when it fails."""
    try:
        return work(*args)
    except ValueError as error:
        raise ValueError(f"in the chunk after {seen} rows: {error}") from None


def _whole_numbers(labels: Any, num_classes: int | None) -> np.ndarray:
    return as_named(classes_of(labels, num_classes))
