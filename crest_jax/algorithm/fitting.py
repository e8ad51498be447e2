"""The quadratic model of a region: what it is fitted to, and how well it holds."""

import math
from typing import Any

import jax
import numpy as np

from crest_jax.algorithm.compiled import new_probes
from crest_jax.algorithm.parts import Model, Parts
from crest_jax.algorithm.state import CrestState, count_work
from crest_jax.data.devices import read_numbers
from crest_jax.data.prefetch import nth_row
from crest_jax.gradients.curvature import covered
from crest_jax.types import Array


def fit_model(parts: Parts, state: CrestState, model: Model) -> tuple[CrestState, float, bool]:
    """Take g and h, the smoothed gradient and Hessian diagonal, on the probe examples or all coresets.

    Returns the state, the anchor's loss, and whether all scores so far were finite.
    """
    config, buffer, region = parts.region, state.buffer, state.region
    assert region is not None
    key, probe_key = jax.random.split(state.key)
    probes = new_probes(probe_key, covered(model.params, config.curvature_of), 1)
    if config.fitted_on == "probe":
        rows = [(region.probe_indices, region.probe_weights)]
    else:
        each = range(buffer.num_coresets)
        rows = [nth_row(buffer.indices, buffer.weights, np.int32(i)) for i in each]
    fit = None
    for indices, weights in rows:
        fit = parts.compiled.fit(probes, *model, parts.source.take(indices), weights, fit)
        passes = 2 * len(indices)
        state = count_work(state, curvature_forward=passes, curvature_backward=passes)
    moments, gradient, curvature, norm = parts.compiled.fold(state.moments, fit)
    region = region._replace(gradient=gradient, curvature=curvature)
    loss, found, finite = read_numbers(region.loss, norm, state.all_finite)
    state = state._replace(key=key, moments=moments, region=region, curvature_norm=found)
    due = state.step >= (parts.region.reference_step or 0)
    if due and math.isnan(state.reference_norm) and math.isfinite(found):
        state = state._replace(reference_norm=found)
    return state, loss, finite


def measure_loss(parts: Parts, state: CrestState, model: Model) -> tuple[CrestState, Array]:
    """Return the loss [] of the probe examples V_r."""
    region = state.region
    assert region is not None
    examples = parts.source.take(region.probe_indices)
    loss = parts.compiled.probe_loss(*model, examples, region.probe_weights)
    return count_work(state, check_forward=parts.region.probe_size), loss


def check_model(parts: Parts, state: CrestState, model: Model) -> tuple[CrestState, tuple[Any, ...]]:
    """Compare the model with the loss now.

    Returns the state; and the loss, its relative error ``rho = |F(delta) - L(w)| / L(w)``, what that
    were for a model that predicts no change, and whether all scores so far were finite.
    """
    size = parts.region.probe_size
    region = state.region
    assert region is not None
    examples = parts.source.take(region.probe_indices)
    found = parts.compiled.errors(region, *model, examples)
    state = count_work(state, check_forward=size)
    if parts.region.curvature == "direction":
        state = count_work(state, curvature_forward=2 * size, curvature_backward=2 * size)
    return state, read_numbers(*found, state.all_finite)
