"""Networks on a Gaussian probability path."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_choice, check_key, check_sizes
from .._display import weights_of
from .._registry import savable
from .._typing import Array, Context, Float, Hidden, Key, Scalar, State

Activation = Literal["silu", "gelu", "tanh", "softplus"]
"""Names of the available activation functions, all smooth."""


def activation_function(name: Activation) -> Callable[[Array], Array]:
    """Return the smooth activation function of a name; names, unlike functions, can be hashed, compared and saved."""
    check_choice(
        "A network",
        "activation",
        name,
        Activation,
        fix="silu",
        reason="log_prob is differentiated twice in training, so only smooth activations are offered. ",
    )
    return getattr(jax.nn, name)


def angle_embedding(angle: Scalar, frequencies: int) -> Float[Array, " embedding"]:
    r"""Cosines and sines of $2k\phi$ for k from 1 to `frequencies`, shape `(2 * frequencies,)`, with $\phi \in [0, \pi/2]$."""
    phases = 2.0 * angle * jnp.arange(1, frequencies + 1)
    return jnp.concatenate([jnp.cos(phases), jnp.sin(phases)])


def linear(key: Key, inputs: int, outputs: int | Literal["scalar"]) -> eqx.nn.Linear:
    """A linear layer with initial weights of variance 1 / inputs (LeCun et al. 1998) and no initial bias."""
    # Only the structure of the layer is needed, so equinox's own initial weights are not drawn.
    layer = eqx.filter_eval_shape(eqx.nn.Linear, inputs, outputs, key=key)
    weight = jr.normal(key, layer.weight.shape) / jnp.sqrt(inputs)
    bias = jnp.zeros(() if outputs == "scalar" else outputs)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, bias))


@savable
class ScalarMLP(eqx.Module):
    """Residual multilayer perceptron with one output, which starts at zero.

    Args:
        key: JAX PRNG key for the initial weights.
        inputs: length of the input.
        width: units in each hidden layer.
        depth: number of residual layers after the first.
        activation: one of "silu", "gelu", "tanh", "softplus".
    """

    inward: eqx.nn.Linear
    middle: tuple[eqx.nn.Linear, ...]
    outward: eqx.nn.Linear
    activation: Activation = eqx.field(static=True)

    def __repr__(self) -> str:
        return f"ScalarMLP({weights_of(self)})"

    def __init__(self, key: Key, inputs: int, *, width: int, depth: int, activation: Activation):
        activation_function(activation)
        first, last, *keys = jr.split(key, 2 + depth)
        self.inward = linear(first, inputs, width)
        self.middle = tuple(linear(each, width, width) for each in keys)
        self.outward = jax.tree.map(jnp.zeros_like, linear(last, width, "scalar"))
        self.activation = activation

    def __call__(self, row: Float[Array, " inputs"]) -> Scalar:
        return self.outward(self.features(row))

    def features(self, row: Float[Array, " inputs"]) -> Float[Array, " width"]:
        """Compute the last hidden layer, shape `(width,)`."""
        act = activation_function(self.activation)
        layer = act(self.inward(row))
        for middle in self.middle:
            layer = layer + act(middle(layer))
        return layer


class AbstractNetwork(eqx.Module):
    """A vector field on a Gaussian path that also returns its last hidden layer."""

    dim: eqx.AbstractVar[int]
    context_dim: eqx.AbstractVar[int]

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, context_dim={self.context_dim}, {weights_of(self)})"

    @property
    def reference_dim(self) -> int:
        """Number of leading entries of the context that the reference of a flow depends on; all of them by default."""
        return self.context_dim

    @abstractmethod
    def __call__(self, angle: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        """Output, shape `(dim,)`, and last hidden features, shape `(width,)`, or `(pixels, width)` for an image."""


@savable
class ResidualMLP(AbstractNetwork):
    r"""Residual multilayer perceptron with an angle embedding in every block and a mixture of linear maps at the output.

    The output is $f(\phi, y, c) = W h + b + \sum_k \pi_k(h)\,A_k\,(y, c)$, where $h(\phi, y, c)$ is the last hidden layer and
    $\pi$ is the softmax of a linear map of $h$. Near a cluster the velocity is nearly linear in the state, with a matrix that
    depends on the cluster. The linear maps, or experts, represent this directly (Jacobs et al. 1991, "Adaptive mixtures of local
    experts"), while a perceptron alone needs many rows to learn it. With `fourier_features` the perceptron also receives cosines
    and sines of random projections of the state, whose coefficients have unit variance. In few dimensions these let it learn
    sharp edges in a fraction of the steps (Tancik et al. 2020, "Fourier features let networks learn high frequency functions in
    low dimensional domains", arXiv 2006.10739).

    The last layer and the experts start at zero, so an untrained network is the zero field and the untrained flow is its
    reference. There is no normalization layer and no power of the inputs, so the network is bounded and Lipschitz on the bounded
    inputs that `squash` gives it.

    Args:
        key: JAX PRNG key for the initial weights.
        dim: dimension of the state.
        context_dim: dimension of the context, 0 for none.
        width: units in each hidden layer.
        depth: number of residual blocks, of two layers each.
        experts: number of linear maps.
        frequencies: harmonics of the angle embedding.
        fourier_features: number of random projections of the state, which are not trained.
        activation: one of "silu", "gelu", "tanh", "softplus".

    Raises:
        TypeError: if `key` is not a PRNG key.
        ValueError: if a size is not an integer in its range, or the activation is unknown.

    Examples:
        >>> network = fd.networks.ResidualMLP(key, dim=2, width=64, experts=0)
        >>> density, report = fd.fit_flow(key, data, network=network)
    """

    inward: eqx.nn.Linear
    projections: Float[Array, "features dim"]
    blocks: tuple[tuple[eqx.nn.Linear, eqx.nn.Linear, eqx.nn.Linear], ...]
    gate: eqx.nn.Linear
    experts: Float[Array, "experts dim inputs"]
    outward: eqx.nn.Linear
    dim: int = eqx.field(static=True)
    context_dim: int = eqx.field(static=True)
    frequencies: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        dim: int,
        context_dim: int = 0,
        *,
        width: int = 256,
        depth: int = 2,
        experts: int = 16,
        frequencies: int = 8,
        fourier_features: int = 0,
        activation: Activation = "silu",
    ):
        check_key("ResidualMLP", key)
        dim, width, frequencies = check_sizes("ResidualMLP", 1, dim=dim, width=width, frequencies=frequencies)
        context_dim, depth, experts, fourier_features = check_sizes(
            "ResidualMLP", 0, context_dim=context_dim, depth=depth, experts=experts, fourier_features=fourier_features
        )
        activation_function(activation)
        inward, outward, *keys, gate = jr.split(key, 3 + 3 * depth)
        embedding = 2 * frequencies
        self.inward = linear(inward, dim + context_dim + embedding + 2 * fourier_features, width)
        self.projections = jr.normal(jr.fold_in(key, 0), (fourier_features, dim))
        self.blocks = tuple(
            (linear(first, width, width), linear(time, embedding, width), linear(second, width, width))
            for first, time, second in zip(keys[0::3], keys[1::3], keys[2::3], strict=True)
        )
        self.gate = linear(gate, width, experts)
        self.experts = jnp.zeros((experts, dim, dim + context_dim))
        self.outward = jax.tree.map(jnp.zeros_like, linear(outward, width, dim))
        self.dim = dim
        self.context_dim = context_dim
        self.frequencies = frequencies
        self.activation = activation

    @property
    def width(self) -> int:
        """Number of hidden features."""
        return self.inward.out_features  # type: ignore[return-value]

    def __call__(self, angle: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        act = activation_function(self.activation)
        time = angle_embedding(angle, self.frequencies)
        inputs = jnp.concatenate([state, context])
        phases = jax.lax.stop_gradient(self.projections) @ state
        hidden = self.inward(jnp.concatenate([inputs, time, jnp.cos(phases), jnp.sin(phases)]))
        for first, shift, second in self.blocks:
            hidden = hidden + second(act(first(act(hidden)) + shift(time)))
        hidden = act(hidden)
        shares = jax.nn.softmax(self.gate(hidden))
        return self.outward(hidden) + jnp.einsum("k,kij,j->i", shares, self.experts, inputs), hidden
