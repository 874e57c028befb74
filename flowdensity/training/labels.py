"""Labels for learning a log density: values and gradients at samples of a flow, and near them."""

from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from tqdm.auto import tqdm

from .._typing import Array, ContextRows, Float, Key, Rows, Scalar
from ..data.whitened import whitened_rows
from ..distributions.flow import FlowDensity
from ..divergence.centers import inflation, mismatched
from ..divergence.interface import AbstractDivergence
from ..models.flows import AbstractProbabilityFlow
from ..solving import AbstractSolver, state_from_noise, state_log_prob
from .losses import LogDensityLabels

FEW_INPUTS = 4
"""Up to this many inputs, event plus context, gradients are computed forwards, and the default network is small."""
CHUNK_SIZE = 1024
"""Number of states that are labeled in one call."""
BATCH_SIZE = 128
"""Number of states whose solves are differentiated at once. Larger batches take more memory and more time outside the cache."""
NOISY_SHARE, INFLATED_SHARE = 0.2, 0.1
"""Fractions of the labeled states that are samples with added noise, and samples moved outwards; the rest are samples."""
MISMATCHED_SHARE = 0.2
"""Fraction of the labeled states that get the context of another state."""
MIN_NOISE = 0.05
"""Smallest standard deviation of the added noise in whitened units. The standard deviation is log-uniform between this and 1."""


def labeled(key: Key, density: FlowDensity, count: int, *, each: int, spread: bool, progress: bool) -> LogDensityLabels:
    """Labeled samples of a density, in groups of `each` with the same context. With `spread`, some are moved off the samples."""
    chunks = -(-count // CHUNK_SIZE)
    model, divergence, solver = density.model, density.divergence, density.solver
    labels = []
    with tqdm(total=chunks * CHUNK_SIZE, desc="labels", unit="label", disable=not progress) as bar:
        for chunk_key in jr.split(key, chunks):
            context_key, noise_key, move_key, far_key, swap_key = jr.split(chunk_key, 5)
            contexts = contexts_of(context_key, density, CHUNK_SIZE // each)
            if spread:
                contexts = inflation(far_key, len(contexts), INFLATED_SHARE) * contexts
            contexts = jnp.repeat(contexts, each, axis=0)
            states = _sampled(model, solver, jr.normal(noise_key, (CHUNK_SIZE, model.dim)), contexts)
            if spread:
                states, contexts = _moved(move_key, states), mismatched(swap_key, contexts, MISMATCHED_SHARE)
            labels.append(jax.block_until_ready(_labeled(model, divergence, solver, states, contexts)))
            bar.update(CHUNK_SIZE)
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:count], *labels)


# The labeling is compiled apart from the choice of states, so that labels of all kinds share one compilation.


@eqx.filter_jit
def _sampled(model: AbstractProbabilityFlow, solver: AbstractSolver, noise: Rows, contexts: ContextRows) -> Rows:
    return jax.vmap(lambda z, c: state_from_noise(model, z, c, solver))(noise, contexts)


@eqx.filter_jit
def _labeled(
    model: AbstractProbabilityFlow,
    divergence: AbstractDivergence,
    solver: AbstractSolver,
    states: Rows,
    contexts: ContextRows,
) -> LogDensityLabels:
    def log_prob(inputs: Float[Array, " inputs"]) -> Scalar:
        return state_log_prob(model, divergence, inputs[: model.dim], inputs[model.dim :], solver)

    # Forward differentiation stores nothing of the solve, and is faster for few inputs.
    inputs = jnp.concatenate([states, contexts], axis=1)
    with_slope = _value_and_forward_gradient if inputs.shape[1] <= FEW_INPUTS else jax.value_and_grad
    values, slopes = jax.lax.map(with_slope(log_prob), inputs, batch_size=BATCH_SIZE)
    return LogDensityLabels(states, contexts, values, slopes)


def _value_and_forward_gradient(
    function: Callable[[Float[Array, " inputs"]], Scalar],
) -> Callable[[Float[Array, " inputs"]], tuple[Scalar, Float[Array, " inputs"]]]:
    """`jax.value_and_grad` by forward differentiation along all axes at once."""

    def both(inputs: Float[Array, " inputs"]) -> tuple[Scalar, Float[Array, " inputs"]]:
        along = partial(jax.jvp, function, (inputs,))
        return jax.vmap(lambda axis: along((axis,)), out_axes=(None, 0))(jnp.eye(len(inputs), dtype=inputs.dtype))

    return both


def contexts_of(key: Key, density: FlowDensity, count: int) -> ContextRows:
    """Whitened contexts drawn from those that a density has been given, or from a standard normal if it has none."""
    size = density.model.context_scaling.dim
    if density.context is None or size == 0:
        return jr.normal(key, (count, size))
    given = density.context.reshape(-1, *density.context_shape)
    chosen = jr.randint(key, (count,), 0, len(given))
    if len(given) <= count:
        return whitened_rows(density.model.context_scaling, given)[chosen]
    return whitened_rows(density.model.context_scaling, given[chosen])


@jax.jit
def _moved(key: Key, states: Rows) -> Rows:
    """Add noise to some states, move some outwards and leave most unchanged."""
    kind_key, size_key, noise_key, far_key = jr.split(key, 4)
    kind = jr.uniform(kind_key, (len(states), 1))
    size = jnp.exp(jr.uniform(size_key, kind.shape, minval=jnp.log(MIN_NOISE)))
    noised = states + size * jr.normal(noise_key, states.shape)
    far = inflation(far_key, len(states), 1.0) * states
    return jnp.where(kind < NOISY_SHARE, noised, jnp.where(kind < NOISY_SHARE + INFLATED_SHARE, far, states))
