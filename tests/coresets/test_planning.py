"""Quotas and plans: arithmetic on sizes, checked against exact fractions and compiled programs."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crest_jax import select_coreset
from crest_jax.coresets.by_class import Members, Settings, choose_by_class_compiled
from crest_jax.coresets.metrics import Metric, Points
from crest_jax.coresets.plan import Shape, make_plan
from crest_jax.data.quotas import proportional_quotas, quotas_for


@settings(deadline=None, max_examples=200)
@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=8).filter(any), data=st.data())
def test_proportional_quotas_are_by_the_largest_remainder_with_one_pick_a_class(counts, data):
    size = data.draw(st.integers(0, sum(counts)))
    found = quotas_for(np.array([counts, counts[::-1]]), size, "proportional")
    for own, quotas in zip((counts, counts[::-1]), found.tolist(), strict=True):
        present = sum(count > 0 for count in own)
        expected = remainders([Fraction(size * count, sum(counts)) for count in own], size)
        if size < present:
            largest = sorted(range(len(own)), key=lambda c: (-own[c], c))[:size]
            expected = [int(c in largest) for c in range(len(own))]
        elif any(count > 0 and quota == 0 for count, quota in zip(own, expected, strict=True)):
            above = [max(Fraction(size * count, sum(own)) - 1, 0) for count in own]
            scale = Fraction(size - present) / max(sum(above), Fraction(1, 10**9))
            more = remainders([share * scale for share in above], size - present)
            expected = [m + (count > 0) for m, count in zip(more, own, strict=True)]
        assert quotas == expected
        assert sum(quotas) == size
        assert all(quota <= count for quota, count in zip(quotas, own, strict=True))


@pytest.mark.parametrize(
    ("counts", "size"), [((5, 0, 3, 9), 8), ((40, 1, 1), 4), ((7, 7, 2), 2), ((1, 90, 30), 60)]
)
def test_the_compiled_quotas_are_those_of_the_host(counts, size):
    compiled = jax.jit(proportional_quotas, static_argnums=(1,), static_argnames="most")
    found = compiled(jnp.array(counts, jnp.int32), size, most=sum(counts)).tolist()
    assert found == quotas_for(np.array([counts]), size, "proportional")[0].tolist()


def remainders(shares, size):
    """Round exact shares to whole numbers with the sum ``size`` by the largest remainder."""
    whole = [int(share) for share in shares]
    short = sorted(range(len(shares)), key=lambda c: (whole[c] - shares[c], c))
    for c in short[: size - sum(whole)]:
        whole[c] += 1
    return whole


def test_quotas_of_millions_do_not_overflow():
    found = quotas_for(np.array([[5_000_000, 1, 1_999_999]]), 6_999_999, "proportional")[0]
    assert found.tolist() == [4_999_999, 1, 1_999_999]


def problem(rows, width, size, classes=1, problems=1):
    return Shape(
        rows, width, rows // classes, size, size // classes, rows / size, classes, problems, False
    )


def test_auto_goes_from_dense_to_lazy_to_parts():
    for rows, method in ((500, "dense"), (5_000, "lazy"), (100_000, "lazy"), (100_001, "partitioned")):
        assert make_plan(problem(rows, 8, 50), "auto", None, 0.1).method == method
    many = problem(5_000, 8, 500, classes=10, problems=100)
    assert make_plan(many, "auto", None, 0.1).method == "dense"
    tight = make_plan(many, "lazy", None, 0.1).memory // 50
    assert make_plan(many, "auto", max(tight, make_plan_base(many)), 0.1).method == "lazy"


def make_plan_base(shape):
    """The least that the lazy form needs."""
    with pytest.raises(ValueError, match="needs at least") as error:
        make_plan(shape, "lazy", 1, 0.1)
    return int(str(error.value).split("raise memory_budget to ")[1].rstrip("."))


def test_a_larger_budget_is_used_for_longer_lists():
    shape = problem(20_000, 10, 2_000)
    plans = [make_plan(shape, "lazy", budget * 2**20, 0.1) for budget in (16, 32, 48)]
    assert [plan.memory <= b * 2**20 for plan, b in zip(plans, (16, 64, 128), strict=True)] == [
        True
    ] * 3
    assert plans[0].capacity < plans[1].capacity < plans[2].capacity
    assert plans[0].dissimilarities > plans[2].dissimilarities


def test_stochastic_draws_fewer_for_a_larger_loss():
    shape = problem(20_000, 10, 2_000)
    draws = [make_plan(shape, "stochastic", None, epsilon).draws for epsilon in (0.5, 0.1, 0.01)]
    assert draws == [7, 24, 47]  # ceil(10 ln(1 / epsilon))


@pytest.mark.parametrize(("rows", "width", "mib"), [(3_000, 8, 8), (9_000, 40, 32)])
def test_the_compiled_program_keeps_to_the_budget(rows, width, mib):
    size = rows // 10
    plan = make_plan(problem(rows, width, size), "lazy", mib * 2**20, 0.1)
    members = Members(jnp.arange(rows, dtype=jnp.int32), jnp.array([rows], jnp.int32))
    program = choose_by_class_compiled.compiled().lower(
        Points((jnp.zeros((rows, width)),)), members, None, members, jnp.array([size], jnp.int32),
        None, jax.random.key(0),
        settings=Settings(size, size, rows, rows, Metric("euclidean", 1.0), plan.capacity, 0),
    ).compile()  # fmt: skip
    used = program.memory_analysis().temp_size_in_bytes
    assert 0.3 * plan.memory < used <= plan.memory
    assert plan.memory <= mib * 2**20


def test_a_pool_of_about_the_same_size_shares_the_compiled_program():
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(2_000, 4)).astype(np.float32), np.arange(2_000) % 3
    program = choose_by_class_compiled.compiled()
    for own in (None, labels):
        before = program._cache_size()
        for rows, size in ((1_100, 40), (1_120, 60), (1_095, 33)):
            kept = None if own is None else own[:rows]
            found = select_coreset(x[:rows], size, labels=kept, method="lazy")
            assert found.weights.sum() == rows
            assert found.assignments.shape == (rows,)
            assert found.indices.max() < rows
        assert program._cache_size() == before + 1
