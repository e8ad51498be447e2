"""Facility location in NumPy and float64, by its definition; it shares no code with the library."""

import numpy as np


def dissimilarities(points, metric):
    """Dissimilarities [n, n] of rows [n, d], by direct differences; of similarities the negative."""
    points = np.asarray(points)
    if metric == "precomputed":
        return -points.astype(np.float64)
    more = points.dtype.kind in "iu" or metric == "cosine"
    wide = points.astype(np.longdouble if more else np.float64)
    if metric == "dot":
        return -(wide.astype(np.longdouble) @ wide.astype(np.longdouble).T).astype(np.float64)
    if metric == "manhattan":
        return np.abs(wide[:, None] - wide[None]).sum(axis=2).astype(np.float64)
    if metric == "correlation":
        scaled = wide.astype(np.longdouble) / (np.abs(wide).max(initial=0) or 1.0)
        wide = scaled - scaled[:, :1]
        wide = wide - wide.mean(axis=1, keepdims=True)
        wide[(scaled == scaled[:, :1]).all(axis=1)] = 0  # a constant row
    if metric in ("cosine", "correlation"):
        sizes = np.abs(wide).max(axis=1, keepdims=True)
        unit = wide / np.where(sizes == 0, 1, sizes)
        lengths = np.sqrt((unit**2).sum(axis=1, keepdims=True))
        unit = unit / np.where(lengths == 0, 1, lengths)
        values = ((unit[:, None] - unit[None, :]) ** 2).sum(axis=2) / 2
        empty = sizes[:, 0] == 0  # no direction: cosine 0 with every other row
        values[empty[:, None] | empty[None, :]] = 1.0
        np.fill_diagonal(values, 0.0)
        return values.astype(np.float64)
    apart = wide[:, None] - wide[None]  # before any scale: exact where rows lie close together
    largest = np.abs(apart).max(initial=0) or 1.0
    distances = np.sqrt(((apart / largest) ** 2).sum(axis=2)) * largest
    distances = distances.astype(np.float64)
    if metric == "sqeuclidean":
        return distances**2
    if metric == "rbf":
        with np.errstate(over="ignore"):
            return -np.expm1(-(distances**2) / points.shape[1])
    return -np.expm1(-distances / points.shape[1]) if metric == "exponential" else distances


def proportional(counts, size):
    """Split ``size`` by the largest remainder in whole numbers, equal remainders to the lower class."""
    counts = [int(count) for count in counts]
    total = sum(counts)
    quotas = [size * count // total for count in counts]
    order = sorted(range(len(counts)), key=lambda c: (-(size * counts[c] % total), c))
    for c in order[: size - sum(quotas)]:
        quotas[c] += 1
    return quotas


def replay(values, codes, picks, top):
    """Follow a choice by class, in float64: gains that picks add, and the best that could be added.

    Args:
      values: [n, n] dissimilarities.
      codes: [n] classes.
      picks: [m] rows, in order.
      top: dissimilarity at which a row counts as not covered.

    Returns:
      Gains [m], best gains [m] of rows of the same class, sums [m] of what is subtracted in them, and
      the value of all picks together.
    """
    cover = np.full(len(values), float(top))
    free = np.ones(len(values), bool)
    gains, best, sums = [], [], []
    for pick in picks:
        own = np.flatnonzero(codes == codes[pick])
        adds = np.maximum(cover[own][:, None] - values[np.ix_(own, own)], 0).sum(axis=0)
        gains.append(adds[own == pick][0])
        best.append(adds[free[own]].max())
        sums.append(np.abs(cover[own]).sum())
        cover[own] = np.minimum(cover[own], values[own, pick])
        free[pick] = False
    return np.array(gains), np.array(best), np.array(sums), float((top - cover).sum())


def weight_limits(values, codes, picks, slack, counted):
    """Least and most rows that each pick may stand for, when distances within ``slack`` may tie.

    Only rows that are ``counted`` [n] are; those of a class without a pick may go to any pick, and a
    pick stands for itself.
    """
    least, most = np.zeros(len(picks)), np.zeros(len(picks))
    place = {int(pick): slot for slot, pick in enumerate(picks)}
    for row in np.flatnonzero(counted).tolist():
        if row in place:
            slots = [place[row]]
        else:
            same = codes[picks] == codes[row]
            allowed = np.flatnonzero(same if same.any() else np.ones(len(picks), bool))
            near = values[row, picks[allowed]]
            slots = allowed[near <= near.min() + slack[row]].tolist()
        if len(slots) == 1:
            least[slots[0]] += 1
        most[slots] += 1
    return least, most
