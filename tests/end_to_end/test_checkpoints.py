"""The recipes of docs/checkpoints.md, run as they stand there: a restored run goes on bit for bit."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from crest_jax import ArraySource, CrestConfig, crest, cross_entropy
from crest_jax.flax import from_nnx

PAGE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python ?(\w*)\n(.*?)^```", PAGE, re.S | re.M)
FORMATS = ["orbax", "serialization", "pickle", "npz"]


@pytest.fixture(scope="module")
def page():
    """The names that the page defines, but for those of a format."""
    names = {}
    for format_, code in BLOCKS:
        if format_ in ("", "numpy", "nnx"):
            exec(compile(code, "docs/checkpoints.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def whole(page):
    selector, run = page["start"]()
    return page["train"](selector, run, 24)


def recipe(page, format_):
    """Define ``save`` and ``restore`` of one format among the names of the page."""
    (code,) = [code for name, code in BLOCKS if name == format_]
    exec(compile(code, "docs/checkpoints.md", "exec"), page)
    return page


def same(one, other):
    """Require equal structures, types and values, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert type(a) is type(b)
        if isinstance(a, jax.Array):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
                assert jax.random.key_impl(a) == jax.random.key_impl(b)
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_every_format_has_its_recipe():
    assert {name for name, _ in BLOCKS} == {"", "numpy", "nnx", *FORMATS}


@pytest.mark.parametrize("format_", FORMATS)
def test_a_restored_run_goes_on_bit_for_bit(page, whole, format_, tmp_path):
    page, (end, taken) = recipe(page, format_), whole
    assert end["chosen"].num_regions > 2
    assert len(np.unique(taken)) > 20
    for at in (0, 11):  # before the first region, and inside one
        found, again = page["stop_and_go_on"](tmp_path / f"run_{at}", 24, at)
        np.testing.assert_array_equal(again, taken)
        same(found, end)


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_restored_is_what_was_saved(page, format_, tmp_path):
    page = recipe(page, format_)
    selector, fresh = page["start"]()
    run, _ = page["train"](selector, fresh, 11)
    page["save"](tmp_path / "run", run)
    same(page["restore"](tmp_path / "run", fresh), run)
    with pytest.raises(AssertionError):
        same(fresh, run)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layer = nnx.Linear(6, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.layer(self.dropout(x)))


@nnx.jit
def nnx_step(model, optimizer, batch):
    def loss(model):
        losses = cross_entropy(model(batch.inputs), batch.labels)
        return jnp.average(losses, weights=batch.weights)

    optimizer.update(model, nnx.grad(loss)(model))


@pytest.mark.slow
@pytest.mark.parametrize("format_", FORMATS)
def test_a_live_nnx_model_goes_on_bit_for_bit(page, format_, tmp_path):
    page = recipe(page, format_)
    x = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    source = ArraySource(x, np.argmax(x[:, :3], axis=1))
    config = CrestConfig.paper(num_examples=60, steps=8, batch_size=6)

    def start(seed):
        model = Model(nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
        apply_fn = from_nnx(model)
        selector = crest(apply_fn, source, config)
        return model, optimizer, selector, apply_fn.view

    def train(model, optimizer, selector, view, chosen, steps):
        for _ in range(steps):
            chosen, _ = selector.refresh(chosen, *view(model))
            chosen, batch = selector.next_batch(chosen)
            nnx_step(model, optimizer, batch)
        return page["run_of"](model, optimizer, chosen)

    first = start(0)
    chosen = first[2].init(jax.random.key(0), *first[3](first[0]))
    half = train(*first, chosen, 4)
    page["save"](tmp_path / "run", half)
    expected = train(*first, half["chosen"], 4)
    second = start(1)
    fresh = second[2].init(jax.random.key(5), *second[3](second[0]))
    run = page["restore"](tmp_path / "run", page["run_of"](second[0], second[1], fresh))
    chosen = page["resume"](second[0], second[1], run)
    same(train(*second, chosen, 4), expected)
