"""A scalar network for a log density, into which a solved flow is distilled."""

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
"""Number of directions of the quadratic functions for each input."""
MAX_DIRECTIONS = 512
"""Maximum number of directions of the quadratic functions."""


@savable
class QuadraticExperts(eqx.Module):
    r"""A mixture of quadratic functions $\sum_k \pi_k(h)\,\tfrac12\sum_m w_{km}\,(p_m \cdot z + c_m)^2$, which starts at zero.

    The shares $\pi$ are a softmax of a linear map of the hidden layer $h$. Near a cluster a log density is nearly quadratic,
    with a matrix that depends on the cluster (Jacobs et al. 1991, "Adaptive mixtures of local experts"). The functions share
    their directions $p_m$, several for each input, so that each additional function costs little more than its weights.

    Args:
        key: JAX PRNG key for the initial weights.
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
    r"""Log density of a whitened state, as a reference plus the output of a scalar network.

    $$\log p(y \mid c) = \log p_\mathrm{ref}(y \mid \sigma(c)) + s\,h(\sigma(y), \sigma(c)) - b\cdot(1, \sigma(c))$$

    The reference is the standard normal or a mixture of Gaussians. $h$ is a multilayer perceptron; with `experts`, a mixture of
    quadratic functions is added to its last layer. The radial squash $\sigma$ moves the state to within the reach of the data,
    where $h$ is bounded and Lipschitz. Far from the data only the reference changes with the distance, and its gradients point
    back to the data. A context beyond `context_reach` is squashed in the same way, so that extrapolation of the network cannot
    make distant contexts likely. $b$ is the log normalizer, which is zero until it is estimated.

    Args:
        key: JAX PRNG key for the initial weights.
        dim: dimension of the state.
        context_dim: dimension of the context, 0 for none.
        reach: radius to which states are squashed before the network sees them, in whitened units.
        context_reach: radius to which contexts are squashed, in whitened units; None means no bound.
        reference: the density that a network of zeros gives; None is the standard normal.
        scale: $s$, typical size of the network's contribution in nats.
        width: units in each hidden layer.
        depth: number of residual layers after the first.
        experts: number of quadratic functions.
        activation: one of "silu", "gelu", "tanh", "softplus".

    Raises:
        TypeError: if `key` is not a PRNG key.
        ValueError: if a size is not an integer in its range, or the activation is unknown.

    Examples:
        >>> network = fd.networks.LogDensityNetwork(key, dim=2, reach=jnp.asarray(5.0), scale=jnp.asarray(1.0))
        >>> network(jnp.zeros(2), jnp.zeros(0))  # log density of a whitened state, given a context of no coordinates
        >>> fd.AmortizedDensity(network, density).log_prob(data[:5])
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
        """Log density of the reference, in nats."""
        if self.reference is None:
            return standard_normal_log_prob(state)
        # The reference is fitted before training and stays fixed.
        reference, reach = jax.lax.stop_gradient((self.reference, self.context_reach))
        return reference.given(context_seen(context, reach)).log_prob(state)

    def departure(self, state: State, context: Context) -> Scalar:
        """Log density minus that of the reference, in nats."""
        # These are computed from the data or estimated after training, so the optimizer must not change them.
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
        """Features of which the log normalizer is a linear function: 1 and the squashed context."""
        seen = context_seen(context, jax.lax.stop_gradient(self.context_reach))
        return jnp.concatenate([jnp.ones(1), seen])
