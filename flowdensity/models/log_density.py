"""One network for a whole log density: what a solved flow is distilled into."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_key, check_sizes
from .._display import weights_of
from .._registry import savable
from .._squash import context_seen, squash
from .._typing import Array, Context, Float, Key, Scalar, State
from ..references.conditional import ConditionalMixture
from ..references.mixture import GaussianMixture
from .flows import standard_normal_log_prob
from .networks import Activation, ScalarMLP, linear

DIRECTIONS_PER_INPUT = 8
"""Random directions for each input."""
MAX_DIRECTIONS = 512
"""Largest number of random directions."""


@savable
class QuadraticExperts(eqx.Module):
    r"""A mixture of quadratic functions $\sum_k \pi_k(h)\,\tfrac12\sum_m w_{km}\,(p_m \cdot z + c_m)^2$, which starts at zero.

    The shares $\pi$ are a softmax of what a network makes of $z$. About a cluster a log density is nearly quadratic, with a
    matrix that depends on the cluster (Jacobs et al. 1991, "Adaptive mixtures of local experts"). The functions share their
    directions $p_m$, several for each input, so that one costs little more than its weights.

    Args:
        key: JAX PRNG key of the initial weights.
        inputs: length of $z$.
        width: length of the hidden layer $h$.
        experts: number of quadratic functions.
    """

    gate: eqx.nn.Linear
    directions: eqx.nn.Linear
    weights: Float[Array, "experts directions"]

    def __init__(self, key: Key, inputs: int, *, width: int, experts: int):
        gate_key, direction_key = jr.split(key)
        directions = min(DIRECTIONS_PER_INPUT * inputs, MAX_DIRECTIONS)
        self.gate = linear(gate_key, width, experts)
        self.directions = linear(direction_key, inputs, directions)
        self.weights = jnp.zeros((experts, directions))

    def __call__(self, hidden: Float[Array, " width"], row: Float[Array, " inputs"]) -> Scalar:
        shares = jax.nn.softmax(self.gate(hidden))
        return 0.5 * jnp.dot(shares @ self.weights, jnp.square(self.directions(row)))


@savable
class LogDensityNetwork(eqx.Module):
    r"""Log density of a whitened state: that of a reference, and a scalar network's departure from it.

    $$\log p(y \mid c) = \log p_\mathrm{ref}(y \mid \sigma(c)) + s\,h(\sigma(y), \sigma(c)) - b\cdot(1, \sigma(c))$$

    The reference is the standard normal or a mixture of Gaussians. $h$ is a perceptron, with a mixture of quadratic functions
    beside its last layer if there are `experts`. It sees the state squashed to within the reach of the data, on which it is
    bounded and Lipschitz: far out only the reference is left, with gradients that point home. A context beyond those that it
    was fitted to is seen as one of them, so that no far context is likely because of what the network makes of it. $b$ is the
    log normalizer, and zero until it is measured.

    Args:
        key: JAX PRNG key of the initial weights.
        dim: dimension of the state.
        context_dim: dimension of the context, 0 for none.
        reach: radius beyond which the network no longer sees how far a state is, in whitened units.
        context_reach: the same of contexts; None, of no context, is no bound.
        reference: the density that a network of zeros gives; None is the standard normal.
        scale: $s$, typical size of the departure in nats.
        width: units in each hidden layer.
        depth: number of residual layers after the first.
        experts: number of quadratic functions.
        activation: one of "silu", "gelu", "tanh", "softplus".

    Raises:
        TypeError: if `key` is no key.
        ValueError: if a size is no integer in its range, or the activation unknown.
    """

    network: ScalarMLP
    experts: QuadraticExperts | None
    reach: Scalar
    scale: Scalar
    normalizer: Float[Array, " coefficients"]
    context_reach: Scalar | None
    reference: GaussianMixture | ConditionalMixture | None

    def __repr__(self) -> str:
        return f"LogDensityNetwork({weights_of(self)})"

    def __init__(
        self,
        key: Key,
        dim: int,
        context_dim: int = 0,
        *,
        reach: Scalar,
        scale: Scalar,
        context_reach: Scalar | None = None,
        reference: GaussianMixture | ConditionalMixture | None = None,
        width: int = 128,
        depth: int = 3,
        experts: int = 0,
        activation: Activation = "silu",
    ):
        check_key("LogDensityNetwork", key)
        dim, width = check_sizes("LogDensityNetwork", 1, dim=dim, width=width)
        context_dim, depth, experts = check_sizes(
            "LogDensityNetwork", 0, context_dim=context_dim, depth=depth, experts=experts
        )
        inputs = dim + context_dim
        self.experts = None
        if experts:
            key, gate_key = jr.split(key)
            self.experts = QuadraticExperts(gate_key, inputs, width=width, experts=experts)
        self.network = ScalarMLP(key, inputs, width=width, depth=depth, activation=activation)
        self.reach = reach
        self.scale = scale
        self.context_reach = context_reach
        self.reference = reference
        self.normalizer = jnp.zeros(1 + context_dim)

    def __call__(self, state: State, context: Context) -> Scalar:
        """Log density in nats of a whitened state given a whitened context."""
        return self.reference_log_prob(state, context) + self.departure(state, context)

    def reference_log_prob(self, state: State, context: Context) -> Scalar:
        """Log density of the reference in nats."""
        if self.reference is None:
            return standard_normal_log_prob(state)
        # Nothing of the reference is trained.
        reference, reach = jax.lax.stop_gradient((self.reference, self.context_reach))
        return reference.given(context_seen(context, reach)).log_prob(state)

    def departure(self, state: State, context: Context) -> Scalar:
        """Log density less that of the reference, in nats."""
        # What describes the data, and what is measured afterwards, is not for the optimizer to move.
        reach, scale, normalizer = jax.lax.stop_gradient((self.reach, self.scale, self.normalizer))
        near, _ = squash(state, reach)
        features = self.normalizer_features(context)
        row = jnp.concatenate([near, features[1:]])
        hidden = self.network.features(row)
        departure = self.network.outward(hidden)
        if self.experts is not None:
            departure = departure + self.experts(hidden, row)
        return scale * departure - jnp.dot(normalizer, features)

    def normalizer_features(self, context: Context) -> Float[Array, " coefficients"]:
        """What the log normalizer is linear in: one, and the context as it is seen."""
        seen = context_seen(context, jax.lax.stop_gradient(self.context_reach))
        return jnp.concatenate([jnp.ones(1), seen])
