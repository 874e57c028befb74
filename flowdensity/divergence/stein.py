"""The learned divergence: a scalar head on the frozen model's own features."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Array, Context, Float, Hidden, Key, Scalar, State
from ..models.flows import AbstractProbabilityFlow
from ..models.networks import Activation, activation_function, angle_embedding, linear, squash
from .interface import AbstractDivergence


def offset_basis(angle: Scalar) -> Float[Array, " basis"]:
    r"""Functions of the angle that calibration may add to a head: $\cos 2k\phi$ for k = 0, 1, 2, 3."""
    return jnp.cos(2.0 * angle * jnp.arange(4))


class DivergenceHead(eqx.Module):
    r"""Scalar network $g(\phi, y)$ that reads the hidden features of the model it serves.

    $g = m^2\,(B\tanh(k/B) + b(\phi))$ with $k$ the network, $m$ the radial factor of `squash`, $B$ the bound and $b$ the
    calibration: smooth, bounded, and fading beyond the reach of the data like $|y|^{-2}$, as the divergence of the
    velocity itself does there.

    Args:
        key: JAX PRNG key of the initial weights.
        dim: dimension of the state.
        hidden_dim: number of hidden features of the model.
        reach: radius of the data in whitened units.
        scale: typical size of the divergence, nats per unit of the model's time.
        bound: $B$, same unit.
        width: units of each of the two hidden layers.
    """

    inward: eqx.nn.Linear
    middle: eqx.nn.Linear
    outward: eqx.nn.Linear
    reach: Scalar
    scale: Scalar
    bound: Scalar
    offset: Float[Array, " basis"]
    frequencies: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        hidden_dim: int,
        *,
        reach: Scalar,
        scale: Scalar,
        bound: Scalar,
        width: int = 128,
        frequencies: int = 8,
        activation: Activation = "silu",
    ):
        activation_function(activation)
        first, second, third = jr.split(key, 3)
        inputs = hidden_dim + dim + 2 * frequencies
        self.inward = linear(first, inputs, width)
        self.middle = linear(second, width, width)
        self.outward = jax.tree.map(jnp.zeros_like, linear(third, width, "scalar"))
        self.reach = reach
        self.scale = scale
        self.bound = bound
        self.offset = jnp.zeros(4)
        self.frequencies = frequencies
        self.activation = activation

    def __call__(self, time: Scalar, state: State, hidden: Hidden) -> Scalar:
        # What describes the data and what calibration sets is not for the optimiser to move.
        reach, scale, bound, offset = jax.lax.stop_gradient((self.reach, self.scale, self.bound, self.offset))
        act = activation_function(self.activation)
        near, factor = squash(state, reach)
        layer = act(self.inward(jnp.concatenate([hidden, near, angle_embedding(time, self.frequencies)])))
        layer = layer + act(self.middle(layer))
        value = bound * jnp.tanh(self.outward(layer) * scale / bound)
        return jnp.square(factor) * (value + jnp.dot(offset, offset_basis(time)))


class SteinDivergence(AbstractDivergence):
    """A divergence distilled with the Langevin-Stein operator: one network pass gives velocity and divergence.

    It belongs to the frozen model it was distilled from (`flowdensity.fit_divergence`), and is stale for any other.
    Jagwani et al. 2026, "Stein Amortized Divergence", arXiv 2605.16486.
    """

    head: DivergenceHead

    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        velocity, hidden = model.features(time, state, context)
        assert hidden is not None, "the head was made for a model with hidden features"
        return velocity, self.head(time, state, hidden)
