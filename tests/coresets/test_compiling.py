"""Kernels compiled with wide vectors compute the same."""

import jax
import jax.numpy as jnp
import numpy as np

from crest_jax.coresets.compiling import jit_wide


def test_wide_vectors_change_no_result_and_compile_once():
    @jax.jit
    def narrow(x, power):
        return jnp.sum(x**power, axis=1)

    def function(x, power):
        return jnp.sum(x**power, axis=1)

    wide = jit_wide(function, static_argnames="power")
    for seed in range(3):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(37, 53)), jnp.float32)
        np.testing.assert_allclose(wide(x, power=3), narrow(x, 3), rtol=2e-5, atol=1e-5)
    assert wide.compiled()._cache_size() == 1
    assert wide.compiled() is wide.compiled()
