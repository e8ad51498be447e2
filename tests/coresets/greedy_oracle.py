"""Greedy facility location with all that ``select_coreset`` can be asked for, in NumPy and float64."""

import numpy as np


class Greedy:
    """One class: what is covered so far, and the gains of all candidates.

    Args:
      values: [n, m] dissimilarities of rows to candidates, or negated similarities.
      top: dissimilarity at which the similarity is 0.
      weights: [n].
      earlier: [n], dissimilarities to the nearest row of elsewhere, or None.
    """

    def __init__(self, values, top, weights, earlier=None):
        self.values, self.top, self.weights = values, top, weights
        self.cover = np.full(len(values), float(top))
        if earlier is not None:
            self.cover = np.minimum(self.cover, earlier)
        self.start = (weights * (top - self.cover)).sum()
        self.largest = self.value_of(np.arange(values.shape[1]))

    def value_of(self, picks):
        """The objective of some picks together with what lies elsewhere."""
        best = np.minimum(self.cover, self.values[:, picks].min(axis=1, initial=np.inf))
        return (self.weights * (self.top - best)).sum()

    def gains(self):
        """Gains [m] of all candidates now."""
        return (self.weights[:, None] * np.maximum(self.cover[:, None] - self.values, 0)).sum(axis=0)

    def take(self, pick):
        """Add a pick."""
        self.cover = np.minimum(self.cover, self.values[:, pick])

    @property
    def objective(self):
        """The objective so far."""
        return (self.weights * (self.top - self.cover)).sum()
