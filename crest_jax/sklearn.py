"""Coresets as a step of scikit-learn: ``CoresetSelector``; needs scikit-learn, which only this imports.

The names are those of scikit-learn, not of apricot: what ``fit`` finds ends in an underscore, and which
rows are chosen is asked by ``get_support``, as of its feature selectors. People who use a pipeline know
them, and scikit-learn itself goes by them: ``check_is_fitted`` looks for the underscore. Apricot's
``ranking`` is ``indices_`` here, its ``gains`` are ``gains_``.
"""

from typing import Any

import jax
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import check_is_fitted

from crest_jax import _checks
from crest_jax.coresets.select import select_coreset


class CoresetSelector(BaseEstimator):
    """Choose weighted medoids of a pool by facility location; ``select_coreset`` can do more.

    It keeps some rows only, so it is the last step of a pipeline: train what follows on
    ``X[indices_]``, ``y[indices_]`` with ``sample_weight=weights_``.

    Args:
      n_select: number of picks.
      metric: see ``select_coreset``, as for all that follow.
      gamma: see there.
      neighbors: see there.
      quotas: picks of each class, where ``fit`` is given ``y``; see there.
      method: see there.
      memory_budget: see there.
      epsilon: see there.
      random_state: whole number, the seed of methods that draw; None: 0.

    Attributes:
      indices_: [n_select], rows of the pool, in the order of the choice (class by class with ``y``).
      weights_: [n_select], examples that each pick stands for.
      gains_: [n_select], growth of the objective at each pick.
      objective_: their sum.
      assignments_: [n], place in ``indices_`` of the pick that stands for each row; see ``Coreset``.
      coverage_: share of the largest possible objective, or None; see ``Coreset``.
      n_samples_: n, rows of the pool.
      n_features_in_: columns of ``X``.

    Example:
      >>> selector = CoresetSelector(2).fit([[0.0], [1.0], [10.0]])
      >>> selector.indices_.tolist(), selector.weights_.tolist(), selector.get_support().tolist()
      ([1, 2], [2.0, 1.0], [False, True, True])
    """

    def __init__(
        self,
        n_select: int,
        *,
        metric: str = "euclidean",
        gamma: float | None = None,
        neighbors: int | None = None,
        quotas: Any = "proportional",
        method: str = "auto",
        memory_budget: int | None = None,
        epsilon: float = 0.1,
        random_state: int | None = None,
    ) -> None:
        """Keep the settings as they are; ``fit`` checks them, as scikit-learn asks."""
        self.n_select = n_select
        self.metric = metric
        self.gamma = gamma
        self.neighbors = neighbors
        self.quotas = quotas
        self.method = method
        self.memory_budget = memory_budget
        self.epsilon = epsilon
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "CoresetSelector":
        """Choose rows.

        Args:
          X: [n, d] embeddings; with the metric "precomputed" similarities [n, n], also sparse.
          y: [n], classes, each of which is then covered by its own picks; None: one class.
          sample_weight: [n], how much each row counts; None: one each. See ``sample_weights`` there.

        Raises:
          ValueError: as ``select_coreset``, on similarities that are not square, and on a
            ``random_state`` that is no whole number from 0 to 2^32 - 1.
        """
        seed = 0 if self.random_state is None else self.random_state
        whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
        _checks.require(
            whole and 0 <= int(seed) < 2**32,
            f"random_state is {_checks.brief(seed)} but must be a whole number from 0 to 2^32 - 1, or "
            "None; pass a seed.",
        )
        shape = X.shape if hasattr(X, "shape") else np.shape(X)
        _checks.require(
            len(shape) == 2,
            f"X has shape {tuple(shape)} but must be [n, d], one row for each example; pass "
            "X.reshape(len(X), -1).",
        )
        _checks.require(
            self.metric != "precomputed" or shape[0] == shape[1],
            f"X has shape {tuple(shape)} but with the metric 'precomputed' it must be square, for rows "
            "are chosen; call select_coreset to choose columns.",
        )
        found = select_coreset(
            X,
            self.n_select,
            labels=y,
            metric=self.metric,
            gamma=self.gamma,
            neighbors=self.neighbors,
            quotas=self.quotas,
            method=self.method,
            memory_budget=self.memory_budget,
            epsilon=self.epsilon,
            key=jax.random.key(int(seed)),
            sample_weights=sample_weight,
        )
        self.indices_ = np.asarray(found.indices)
        self.weights_ = np.asarray(found.weights)
        self.gains_ = np.asarray(found.gains)
        self.objective_ = float(found.objective)
        self.assignments_ = np.asarray(found.assignments)
        self.coverage_ = None if found.coverage is None else float(found.coverage)
        self.n_samples_, self.n_features_in_ = shape
        return self

    def transform(self, X: Any) -> Any:
        """Return the chosen rows [n_select, ...], in the order of ``indices_``.

        Args:
          X: the pool, or anything else with one entry for each of its rows (labels, images, a table).

        Raises:
          ValueError: when it has another number of rows.
          NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        rows = X.shape[0] if hasattr(X, "shape") else len(X)
        _checks.require(
            rows == self.n_samples_,
            f"X has {rows} rows but the choice is among {self.n_samples_}; pass what belongs to the "
            "pool that was fitted.",
        )
        return _safe_indexing(X, self.indices_)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Choose rows and return them; see ``fit`` and ``transform``."""
        return self.fit(X, y, sample_weight).transform(X)

    def get_support(self, indices: bool = False) -> np.ndarray:
        """Return which rows were chosen: a mask [n], or with ``indices`` their numbers, ascending.

        Raises:
          NotFittedError: before ``fit``.
        """
        check_is_fitted(self)
        chosen = np.zeros(self.n_samples_, bool)
        chosen[self.indices_] = True
        return np.flatnonzero(chosen) if indices else chosen

    def __sklearn_tags__(self) -> Any:
        """Say that rows may be similarities, and sparse ones then."""
        tags = super().__sklearn_tags__()
        tags.input_tags.pairwise = self.metric == "precomputed"
        tags.input_tags.sparse = self.metric == "precomputed"
        return tags
