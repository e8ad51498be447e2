"""What cannot be meant beside a size is refused, at the call, in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crest_jax import Factored, plan_coreset, select_coreset
from crest_jax.types import Coreset

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
ONES = np.ones(60)
MANY = np.stack([X, X])
PICKED = Coreset(jnp.array([1]), jnp.ones(1), jnp.ones(1), jnp.ones(()), None, jnp.ones(()))

REFUSED = [
    ({"size": None}, "size is None but nothing else ends the choice; pass size, costs"),
    ({"size": None, "coverage": 0.5, "labels": Y, "quotas": "equal"},
     "quotas are 'equal' but size is None"),
    ({"sample_weights": ONES[:9]}, r"sample_weights have shape \(9,\) but must have shape \(60,\)"),
    ({"sample_weights": -ONES}, "sample_weights lie between -1 and -1 but must be at least 0"),
    ({"sample_weights": 0 * ONES}, "between 0 and 0 .* not all 0; pass how much"),
    ({"sample_weights": np.nan * ONES}, "sample_weights hold 60 NaN or infinite"),
    ({"sample_weights": "heavy"}, "sample_weights are 'heavy' but must be an array"),
    ({"sample_weights": 1j * ONES}, "sample_weights have dtype complex128 but must be real"),
    ({"initial": PICKED}, "initial is a Coreset but must be positions or rows; pass its indices"),
    ({"initial": [3, 60]}, r"initial hold 60 but positions must lie in \[0, 60\)"),
    ({"initial": [-1]}, r"initial hold -1 but positions must lie in \[0, 60\)"),
    ({"initial": [3, 4, 3]}, "initial hold 3 more than once"),
    ({"initial": list(range(9))}, "initial hold 9 picks but size is 5 and counts them; raise size"),
    ({"initial": [1.0, 2.0]}, "initial have dtype float64 and shape .* but must be positions"),
    ({"initial": Y == 0}, "initial have dtype bool but must be positions.*flatnonzero"),
    ({"initial": [[1, 2]]}, r"initial have shape \(1, 2\) but must be positions \[k\]"),
    ({"initial": X[:2, :3]}, r"initial have shapes \[\(2, 3\)\] but embeddings have \[\(60, 4\)\]"),
    ({"initial": Factored(X, X)}, "initial have shapes .* pass rows of the same width"),
    ({"initial": X[:2] * np.nan}, "initial hold 8 NaN or infinite numbers"),
    ({"initial": X[:2], "labels": Y}, "initial are rows of elsewhere, which metric"),
    ({"initial": X[:2], "embeddings": MANY, "batched": True}, "initial are rows of elsewhere"),
    ({"initial": X[:2, :2] @ X[:60, :2].T, "embeddings": X @ X.T, "metric": "precomputed"},
     "initial are rows of elsewhere"),
    ({"initial": [3], "embeddings": MANY, "batched": True}, r"initial have shape \(1,\) .* \[p, k\]"),
    ({"initial": [0, 3, 6], "labels": Y, "quotas": [2, 2, 1]}, "initial hold 3 picks of class 0"),
    ({"initial": [3], "candidates": X[:8]},
     "initial are positions in the pool but candidates are rows"),
    ({"initial": [3], "method": "partitioned"}, "initial is given but method is 'partitioned'"),
    ({"candidates": Y[:9] == 0}, r"candidates are a mask of shape \(9,\) but must have shape"),
    ({"candidates": Y == 7}, "candidates leave nothing to pick"),
    ({"candidates": []}, "candidates leave nothing to pick"),
    ({"candidates": [77]}, "candidates hold 77 but positions must lie"),
    ({"candidates": [1, 2, 3]}, "size is 5 but the pool holds 3 examples"),
    ({"candidates": X[:3]}, "size is 5 but the pool holds 3 examples"),
    ({"candidates": X[:8], "labels": Y}, "candidates are rows of elsewhere"),
    ({"candidates": np.flatnonzero(Y == 0), "labels": Y, "size": 9},
     "candidates hold 0 examples of class 1"),
    ({"candidates": Y == 0, "method": "partitioned"},
     "candidates is given but method is 'partitioned'"),
    ({"costs": ONES}, "costs are given without a budget"),
    ({"budget": 3}, "budget is 3 but there are no costs"),
    ({"costs": ONES[:9], "budget": 3}, r"costs have shape \(9,\) but must have shape \(60,\)"),
    ({"costs": 0 * ONES, "budget": 3}, "costs reach down to 0 but must be positive"),
    ({"costs": np.inf * ONES, "budget": 3}, "costs hold 60 NaN or infinite"),
    ({"costs": ONES, "budget": 0}, "budget is 0 but must be a positive finite number"),
    ({"costs": ONES, "budget": np.inf}, "budget is inf but must be a positive finite number"),
    ({"costs": ONES, "budget": "all"}, "budget is 'all' but must be a positive finite number"),
    ({"costs": 3 * ONES, "budget": 2}, "budget is 2 but the cheapest candidate costs 3"),
    ({"costs": ONES, "budget": 2, "initial": [1, 2, 3]}, "initial cost 3 together but the budget is 2"),
    ({"costs": ONES, "budget": 2, "labels": Y}, "costs are given beside labels"),
    ({"costs": ONES, "budget": 2, "coverage": 0.5}, "costs are given beside stop_gain or coverage"),
    ({"costs": ONES, "budget": 2, "method": "stochastic"}, "costs is given but method is 'stochastic'"),
    ({"stop_gain": 0}, "stop_gain is 0 but must be a positive finite number"),
    ({"stop_gain": True}, "stop_gain is True but must be a positive finite number"),
    ({"stop_gain": [1.0]}, "stop_gain is .* but must be a positive finite number"),
    ({"stop_gain": 1.0, "method": "stochastic"}, "stop_gain is given but method is 'stochastic'"),
    ({"coverage": 1.5}, r"coverage is 1.5 but must lie in \(0, 1\]"),
    ({"coverage": np.nan}, "coverage is nan but must be a positive"),
    ({"coverage": 0.5, "method": "partitioned"}, "coverage is given but method is 'partitioned'"),
    ({"coverage": 0.5, "embeddings": MANY, "batched": True},
     "stop_gain or coverage is given but .* several"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "message"), REFUSED, ids=range(len(REFUSED)))
def test_wrong_uses_are_refused_in_a_sentence_before_any_work(asked, message):
    asked = {"embeddings": X, "size": 5, **asked}
    for call in (select_coreset, plan_coreset):
        with pytest.raises(ValueError, match=message) as error:
            call(**asked)
        text = str(error.value)
        assert len(text) < 400
        assert text.endswith(".")
        assert "\n" not in text


INSIDE = [
    ({"costs": ONES, "budget": 3}, "inside jit the number of picks must be known; select outside"),
    ({"coverage": 0.5}, "inside jit the number of picks must be known"),
    ({"sample_weights": ONES, "method": "lazy"}, 'inside jit sample_weights, .* need "dense"'),
    ({"sample_weights": ONES[:9]}, r"sample_weights have shape \(9,\)"),
    ({"initial": [3], "labels": Y, "num_classes": 3}, "inside jit these are for one class"),
    ({"initial": X[:2]}, r"initial are .* inside jit they must be whole numbers"),
    ({"initial": list(range(9))}, "at most size, which is 5"),
    ({"candidates": [1, 2]}, "inside jit they must be a mask"),
]


@pytest.mark.parametrize(("asked", "message"), INSIDE, ids=range(len(INSIDE)))
def test_inside_jit_too(asked, message):
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda x: select_coreset(x, 5, **asked))(X)


def test_plans_know_what_only_exact_methods_can_do():
    pool = jax.ShapeDtypeStruct((200_000, 8), jnp.float32)
    assert plan_coreset(pool, 100).method == "partitioned"
    assert plan_coreset(pool, 100, sample_weights=np.ones(200_000)).method == "partitioned"
    assert plan_coreset(pool, 100, initial=[5]).method == "lazy"
    assert plan_coreset(pool, coverage=0.9).method == "lazy"
