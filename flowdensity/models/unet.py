"""A small convolutional network for events with rows, columns and channels."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_key, check_shape, check_sizes
from .._registry import savable
from .._typing import Array, Context, Float, Hidden, Key, Scalar, State
from .networks import AbstractNetwork, Activation, activation_function, angle_embedding, linear


@savable
class Block(eqx.Module):
    """Residual block of two 3x3 convolutions, with the angle and the context added between them.

    Args:
        key: JAX PRNG key for the initial weights.
        channels: number of channels of the input and of the output.
        embedding: length of the vector of angle embedding and context.
    """

    first: eqx.nn.Conv2d
    shift: eqx.nn.Linear
    second: eqx.nn.Conv2d

    def __init__(self, key: Key, channels: int, embedding: int):
        first, shift, second = jr.split(key, 3)
        self.first = convolution(first, channels, channels)
        self.shift = linear(shift, embedding, channels)
        self.second = convolution(second, channels, channels)

    def __call__(
        self, image: Float[Array, "rows columns channels"], told: Float[Array, " embedding"], activation: Activation
    ) -> Float[Array, "rows columns channels"]:
        act = activation_function(activation)
        inner = convolve(self.first, act(image)) + self.shift(told)
        return image + convolve(self.second, act(inner))


@savable
class UNet(AbstractNetwork):
    r"""Convolutional network for images with several scales (Ronneberger et al. 2015, arXiv 1505.04597).

    There is one block on each scale on the way down and one on the way up. The features of the way down are concatenated to
    those of the way up on the same scale. Each scale has half the rows and columns and twice the channels of the one before. As
    in `ResidualMLP`, the last layer starts at zero, and there is no normalization layer and no product of inputs, so the network
    is bounded and Lipschitz on bounded inputs.

    The hidden features have a row for each pixel. A divergence head reads each row by itself and sums over the rows.

    Args:
        key: JAX PRNG key for the initial weights.
        event_shape: rows, columns and channels of an event.
        context_dim: dimension of the context, 0 for none.
        width: number of channels on the finest scale.
        scales: number of scales; rows and columns must be divisible by `2 ** (scales - 1)`.
        frequencies: harmonics of the angle embedding.
        activation: one of "silu", "gelu", "tanh", "softplus".

    Raises:
        TypeError: if `key` is not a PRNG key, or `event_shape` is not a shape.
        ValueError: if a size is not an integer in its range, the activation is unknown, the events are not images, or their rows
            and columns are not divisible by `2 ** (scales - 1)`.

    Examples:
        >>> network = fd.networks.UNet(key, (8, 8, 1), width=16, scales=2)  # argument `network` of a fit to images
        >>> network.dim
        64
    """

    inward: eqx.nn.Conv2d
    place: Float[Array, "width rows columns"]
    down: tuple[tuple[Block, eqx.nn.Conv2d], ...]
    middle: Block
    up: tuple[tuple[eqx.nn.Conv2d, Block], ...]
    outward: eqx.nn.Conv2d
    dim: int = eqx.field(static=True)
    context_dim: int = eqx.field(static=True)
    event_shape: tuple[int, int, int] = eqx.field(static=True)
    frequencies: int = eqx.field(static=True)
    activation: Activation = eqx.field(static=True)

    def __init__(
        self,
        key: Key,
        event_shape: tuple[int, int, int],
        context_dim: int = 0,
        *,
        width: int = 32,
        scales: int = 3,
        frequencies: int = 8,
        activation: Activation = "silu",
    ):
        check_key("UNet", key)
        shape = check_shape("UNet", "event_shape", event_shape, fix="(8, 8, 1)")
        width, scales, frequencies = check_sizes("UNet", 1, width=width, scales=scales, frequencies=frequencies)
        (context_dim,) = check_sizes("UNet", 0, context_dim=context_dim)
        activation_function(activation)
        if len(shape) != 3 or any(size % 2 ** (scales - 1) for size in shape[:2]):
            image = {2: (*shape, 1), 3: shape}.get(len(shape), (8, 8, 1))
            most = next(
                fewer for fewer in range(scales, 0, -1) if all(size % 2 ** (fewer - 1) == 0 for size in image[:2])
            )
            raise ValueError(
                f"UNet expected `event_shape` as (rows, columns, channels), with rows and columns divisible by "
                f"{2 ** (scales - 1)} for {scales} scales; got {event_shape}. Fix: event_shape = {image}; scales = {most}"
            )
        rows, columns, channels = shape
        told = 2 * frequencies + context_dim
        inward, middle, outward, *keys = jr.split(key, 3 + 4 * (scales - 1))
        widths = [width * 2**scale for scale in range(scales)]
        steps = list(zip(widths[:-1], widths[1:], keys[0::4], keys[1::4], keys[2::4], keys[3::4], strict=True))
        self.inward = convolution(inward, channels, width)
        self.place = jnp.zeros((width, rows, columns))
        self.down = tuple(
            (Block(block, fine, told), convolution(step, fine, coarse, stride=2))
            for fine, coarse, block, step, _, _ in steps
        )
        self.middle = Block(middle, widths[-1], told)
        # The input of each step up also has the features of the way down on the same scale.
        self.up = tuple(
            (convolution(step, coarse + fine, fine), Block(block, fine, told))
            for fine, coarse, _, _, step, block in reversed(steps)
        )
        self.outward = jax.tree.map(jnp.zeros_like, convolution(outward, width, channels))
        self.dim = math.prod(shape)
        self.context_dim = context_dim
        self.event_shape = (rows, columns, channels)
        self.frequencies = frequencies
        self.activation = activation

    def __call__(self, angle: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        told = jnp.concatenate([angle_embedding(angle, self.frequencies), context])
        image = convolve(self.inward, state.reshape(self.event_shape)) + jnp.moveaxis(self.place, 0, -1)
        passed = []
        for block, step in self.down:
            image = block(image, told, self.activation)
            passed.append(image)
            image = convolve(step, image)
        image = self.middle(image, told, self.activation)
        for (step, block), fine in zip(self.up, reversed(passed), strict=True):
            grown = jnp.repeat(jnp.repeat(image, 2, axis=0), 2, axis=1)
            image = block(convolve(step, jnp.concatenate([grown, fine], axis=-1)), told, self.activation)
        image = activation_function(self.activation)(image)
        return jnp.ravel(convolve(self.outward, image)), image.reshape(-1, image.shape[-1])


def convolution(key: Key, inputs: int, outputs: int, *, stride: int = 1) -> eqx.nn.Conv2d:
    """A 3x3 convolution with initial weights of variance 1 / (9 inputs) and no initial bias, as in `linear`."""
    layer = eqx.filter_eval_shape(eqx.nn.Conv2d, inputs, outputs, kernel_size=3, stride=stride, padding=1, key=key)
    weight = jr.normal(key, layer.weight.shape) / jnp.sqrt(9 * inputs)
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, (weight, jnp.zeros((outputs, 1, 1))))


def convolve(
    layer: eqx.nn.Conv2d, image: Float[Array, "rows columns inputs"]
) -> Float[Array, "new_rows new_columns outputs"]:
    """Apply a 3x3 convolution to an image with channels last, as one matrix product with the nine neighbors of each pixel.

    XLA's own convolution takes ten times as long on a CPU inside a loop (github.com/jax-ml/jax/issues/12868), and both training
    and solvers are loops.
    """
    assert layer.bias is not None
    rows, columns, inputs = image.shape
    down, right = layer.stride
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    near = [padded[i : i + rows : down, j : j + columns : right] for i in range(3) for j in range(3)]
    weight = jnp.transpose(layer.weight, (2, 3, 1, 0)).reshape(9 * inputs, -1)
    return jnp.concatenate(near, axis=-1) @ weight + layer.bias.ravel()
