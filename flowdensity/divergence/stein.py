"""Learned divergence: a scalar head on the hidden features of a frozen model."""

import equinox as eqx
import jax
import jax.numpy as jnp

from .._display import weights_of
from .._registry import savable
from .._squash import squash
from .._typing import Array, Context, Float, Hidden, Key, Scalar, State, Times
from ..models.flows import AbstractProbabilityFlow
from ..models.networks import AbstractNetwork, Activation, ScalarMLP, angle_embedding
from .interface import AbstractDivergence


def seen_field(model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
    """Return the network's contribution to the velocity, divided by the velocity scale, and the features that a head reads.

    The features are the model's hidden features or, if the model has none, the scaled contribution itself.
    """
    contribution, hidden = model.network_velocity(time, state, context)
    field = contribution / model.velocity_scale(time)
    return field, field if hidden is None else hidden


@savable
class DivergenceHead(eqx.Module):
    r"""Scalar network $g(s, y)$ for the divergence of the network's contribution to the velocity, divided by the velocity scale.

    $g = m^2\,(B\tanh(k/B) + b(\phi))$. Here $k$ is a network on the features $s$ and the state, summed over the places of an
    image if the hidden features have a row for each place, $m$ is the radial factor of `squash`, $B$ is the bound, $b$ is the
    calibration, and $\phi \in [0, \pi/2]$ is the elapsed fraction of the model's time, as an angle. $g$ is smooth and bounded.
    Beyond the reach of the data it decays like $|y|^{-2}$, as the divergence of the velocity does.

    Args:
        key: JAX PRNG key of the initial weights.
        dim: dimension of the state.
        visible_shape: shape of the model's hidden features, `(width,)` or `(places, width)`, or `(dim,)` if it has none.
        span: first and last time of the model, shape `(2,)`.
        reach: radius of the data in whitened units, infinite for a model whose velocity does not decay.
        scale: typical size of the divergence, in nats per unit of the model's time.
        bound: $B$, in the same unit.
        width: units of each hidden layer.
        depth: number of hidden layers after the first.
    """

    network: ScalarMLP
    span: Times
    reach: Scalar
    scale: Scalar
    bound: Scalar
    offset: Float[Array, " basis"]
    places: int = eqx.field(static=True)
    frequencies: int = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        visible_shape: tuple[int, ...],
        *,
        span: Times,
        reach: Scalar,
        scale: Scalar,
        bound: Scalar,
        width: int = 128,
        depth: int = 1,
        frequencies: int = 8,
        activation: Activation = "silu",
    ):
        self.places = visible_shape[0] if len(visible_shape) == 2 else 1
        inputs = visible_shape[-1] + dim // self.places + 2 * frequencies
        self.network = ScalarMLP(key, inputs, width=width, depth=depth, activation=activation)
        self.span = span
        self.reach = reach
        self.scale = scale
        self.bound = bound
        self.offset = jnp.zeros(4)
        self.frequencies = frequencies

    def basis(self, time: Scalar, state: State) -> Float[Array, " basis"]:
        r"""Functions that the calibration may add: $m^2\cos 2k\phi$ for k = 0, 1, 2, 3."""
        _, factor = squash(state, jax.lax.stop_gradient(self.reach))
        return jnp.square(factor) * jnp.cos(2.0 * self._angle(time) * jnp.arange(4))

    def __call__(self, time: Scalar, state: State, seen: Hidden) -> Scalar:
        # The optimizer must not change constants that describe the data or the calibration.
        reach, scale, bound, offset = jax.lax.stop_gradient((self.reach, self.scale, self.bound, self.offset))
        near, factor = squash(state, reach)
        told = angle_embedding(self._angle(time), self.frequencies)
        rows = jnp.concatenate([seen.reshape(self.places, -1), near.reshape(self.places, -1)], axis=1)
        each = jax.vmap(lambda row: self.network(jnp.concatenate([row, told])))(rows)
        # A sum of independent contributions grows like the square root of the number of places.
        total = jnp.sum(each) / jnp.sqrt(self.places)
        value = bound * jnp.tanh(total * scale / bound)
        return jnp.square(factor) * value + jnp.dot(offset, self.basis(time, state))

    def _angle(self, time: Scalar) -> Scalar:
        first, last = jax.lax.stop_gradient(self.span)
        return 0.5 * jnp.pi * (time - first) / (last - first)


@savable
class SteinDivergence(AbstractDivergence):
    """Divergence distilled with the Langevin-Stein operator. One network pass gives both velocity and divergence.

    The head learns the divergence of the network's contribution to the velocity. The divergence of the reference velocity has a
    closed form.

    The head belongs to the frozen model it was distilled from (`flowdensity.fit_divergence`) and is wrong for any other.
    Jagwani et al. 2026, "StAD: Stein Amortized Divergence", arXiv 2605.16486.

    Raises:
        TypeError: if `head` is a network or cannot be called.

    Examples:
        >>> divergence, report = fd.fit_divergence(key, density.model, data)
        >>> density = fd.FlowDensity(density.model, divergence=divergence)
    """

    is_learned = True

    head: DivergenceHead

    def __repr__(self) -> str:
        return f"SteinDivergence({weights_of(self.head)})"

    def __check_init__(self) -> None:
        if isinstance(self.head, AbstractNetwork) or not callable(self.head):
            raise TypeError(
                "SteinDivergence expected `head` as a scalar function (time, state, hidden); got "
                f"{type(self.head).__name__}. Fix: head = fd.fit_divergence(key, model, data)[0].head"
            )

    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        unit = model.velocity_scale(time)
        field, seen = seen_field(model, time, state, context)
        velocity, rate = model.reference_velocity(time, state, context)
        return unit * field + velocity, unit * self.head(time, state, seen) + rate
