"""Functions over batches of events and contexts. Each is compiled once, so that calls outside `jit` do not compile again.

Rows are computed in blocks (`over_rows`), so that memory does not grow with their number. Contexts are flat, with shape
`(*batch_shape, context_dim)`. The argument `parts` holds the model, the divergence and the solver of a density.
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .. import solving
from .._blocks import over_rows
from .._typing import Array, Key
from ..data.scaling import Scaling
from ..models.encoding import Encoding
from ..models.flows import AbstractProbabilityFlow


def _over_batch(one: Any, array: Array, event_dim: int, context: Array) -> Any:
    """Apply `one(event, context)` over the broadcast batch axes of both."""
    batch = jnp.broadcast_shapes(array.shape[: array.ndim - event_dim], context.shape[:-1])
    event_shape = array.shape[array.ndim - event_dim :]
    if not batch:
        return one(array, context)
    count = math.prod(batch)
    rows = jnp.broadcast_to(array, (*batch, *event_shape)).reshape(count, *event_shape)
    if context.ndim == 1:
        out = over_rows(lambda event: one(event, context), rows)
    else:
        contexts = jnp.broadcast_to(context, (*batch, context.shape[-1])).reshape(count, context.shape[-1])
        out = over_rows(one, rows, contexts)
    return jax.tree.map(lambda leaf: leaf.reshape(*batch, *leaf.shape[1:]), out)


@eqx.filter_jit
def log_probs(state_log_prob: Any, scalings: tuple[Scaling, Scaling | Encoding], value: Array, context: Array) -> Array:
    """Log densities of events in nats.

    Args:
        state_log_prob: log density of one whitened state given one whitened context.
        scalings: the maps from events to whitened states, and from contexts to whitened contexts.
        value: events, shape `(*batch, *event_shape)`.
        context: flat contexts.
    """
    scaling, context_scaling = scalings

    def one(event: Array, context: Array) -> Array:
        encoded, _ = context_scaling.whiten(context.reshape(context_scaling.event_shape))
        state, log_det = scaling.whiten(event)
        return state_log_prob(state, encoded) + log_det

    return _over_batch(one, value, len(scaling.event_shape), context)


@eqx.filter_jit
def events(parts: Any, noise: Array, context: Array) -> Array:
    """Map noise to events with the flow."""
    model, _, solver = parts
    return _over_batch(lambda z, c: solving.event_from_noise(model, z, _shaped(model, c), solver), noise, 1, context)


@eqx.filter_jit
def noises(parts: Any, value: Array, context: Array) -> Array:
    """Map events to noise with the inverse of the flow."""
    model, _, solver = parts
    return _over_batch(
        lambda x, c: solving.noise_from_event(model, x, _shaped(model, c), solver),
        value,
        len(model.event_shape),
        context,
    )


@eqx.filter_jit
def events_and_log_probs(parts: Any, noise: Array, context: Array) -> tuple[Array, Array]:
    """Map noise to events with the flow, and compute their log densities in nats in the same solve."""
    model, divergence, solver = parts
    return _over_batch(
        lambda z, c: solving.event_and_log_prob_from_noise(model, divergence, z, _shaped(model, c), solver),
        noise,
        1,
        context,
    )


@eqx.filter_jit
def diffused(parts: Any, key: Key, noise: Array, context: Array, steps: int, strength: float) -> Array:
    """Map noise to events with the reverse diffusion."""
    model, _, _ = parts
    batch = noise.shape[:-1]
    rows, context = noise.reshape(-1, model.dim), jnp.broadcast_to(context, (*batch, context.shape[-1]))
    events = over_rows(
        lambda k, z, c: solving.event_from_diffusion(model, k, z, _shaped(model, c), steps, strength),
        jr.split(key, len(rows)),
        rows,
        context.reshape(len(rows), context.shape[-1]),
    )
    return events.reshape(*batch, *model.event_shape)


def _shaped(model: AbstractProbabilityFlow, context: Array) -> Array:
    return context.reshape(model.context_shape)
