"""Probability flows from the user's own velocity, given as any callable."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from .._checks import check_shape
from .._numpyro import unwrapped
from .._registry import savable
from .._typing import Array, Context, Float, Hidden, Scalar, State, Times
from ..data.scaling import Scaling
from .flows import AbstractProbabilityFlow, zero_velocity


@savable
class VelocityField(AbstractProbabilityFlow):
    r"""Any callable `(t, x, context) -> velocity` as a probability flow from a Gaussian base.

    The ODE $dx/dt = v(t, x, c)$ carries the base at the first of `times` to the density at the last. The callable receives one
    event in its own units, and one context or None. It may be an equinox or a flax.nnx module. Pass a function with parameters
    as `jax.tree_util.Partial(function, parameters)`, so that the parameters are part of the model. If the callable returns a
    pair, the second element is used as hidden features for a learned divergence. It is an array of any shape; for an image it
    may have a last axis of features at each pixel.

    The package cannot control a callable far from its training data. `exp(log_prob)` is integrable, and chains return from the
    tails, if the callable itself is Lipschitz and does not grow.

    Args:
        network: the callable.
        base: a normal distribution without batch axes, such as `dist.Normal(0, 1).expand([3]).to_event(1)` or a
            `MultivariateNormal`; its event shape is that of the density.
        times: the callable's own time at the base and at the data; the first may be larger than the second.
        context_shape: shape of one context; None for an unconditional velocity.

    Raises:
        TypeError: if `network` cannot be called with these arguments, `base` is not a normal distribution, or `context_shape`
            is not a shape.
        ValueError: if a velocity does not have the shape of its event, or `times` are not two different finite numbers.

    Examples:
        >>> base = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
        >>> model = fd.VelocityField(lambda t, x, context: -0.5 * x, base)
        >>> fd.FlowDensity(model).log_prob(data[:5])
    """

    network: Callable[..., Any]
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar
    first: float = eqx.field(static=True)
    last: float = eqx.field(static=True)
    has_features: bool = eqx.field(static=True)

    def __init__(
        self,
        network: Callable[..., Any],
        base: dist.Distribution,
        *,
        times: tuple[float, float] = (0.0, 1.0),
        context_shape: tuple[int, ...] | None = None,
    ):
        try:
            ends = np.asarray(times, float)
        except (TypeError, ValueError):
            ends = np.zeros(0)
        if ends.shape != (2,) or not np.isfinite(ends).all() or ends[0] == ends[1]:
            raise ValueError(
                f"VelocityField expected `times` as two different finite numbers, at the base and at the data; got {times!r}. "
                "Fix: times=(0.0, 1.0)"
            )
        self.scaling = _base_scaling(base)
        self.context_scaling = context_identity("VelocityField", context_shape)
        self.network = wrap(network)
        self.reach = jnp.asarray(jnp.inf)
        self.first, self.last = map(float, ends)
        self.has_features = check_output("VelocityField", self.network, self.scaling, self.context_scaling)

    def network_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        event = self.scaling.unwhiten(state)
        velocity, hidden = call(self.network, time, event, context, self.context_shape, self.has_features)
        # Velocities transform by the Jacobian of the map to whitened coordinates, which is constant because the map is affine.
        tangent = jnp.asarray(velocity, event.dtype)  # The network may return another dtype.
        _, whitened = jax.jvp(lambda x: self.scaling.whiten(x)[0], (event,), (tangent,))
        return whitened, hidden

    def reference_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        return zero_velocity(state)

    def velocity_scale(self, time: Scalar) -> float:
        return 1.0

    def times(self, steps: int) -> Times:
        return jnp.linspace(self.first, self.last, steps + 1)


def identity_scaling(shape: tuple[int, ...]) -> Scaling:
    """Scaling that flattens events of a shape and changes nothing else."""
    size = math.prod(shape)
    return Scaling(np.zeros(size), np.ones(size), constraints.real, shape)


def context_identity(caller: str, shape: tuple[int, ...] | None) -> Scaling:
    """Scaling that flattens contexts of a shape; None means that there are no contexts.

    Raises:
        TypeError: if `shape` is not a shape.
    """
    absent = shape is None or shape == (0,)  # `context_shape` of an unconditional model is (0,).
    return identity_scaling((0,) if absent else check_shape(caller, "context_shape", shape, fix="(3,)"))


def wrap(network: Callable[..., Any]) -> Callable[..., Any]:
    """Convert the numpy arrays of the user's callable to JAX arrays.

    Raises:
        TypeError: if `network` is not callable.
    """
    if not callable(network):
        raise TypeError(
            f"A velocity was expected as a callable (t, x, context); got {type(network).__name__}. "
            "Wrap a function with parameters in `jax.tree_util.Partial(function, parameters)`. A velocity of 0 leaves the base "
            "unchanged. "
            "Fix: network = lambda t, x, context: jax.numpy.zeros_like(x)"
        )
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, network)


def call(
    network: Callable[..., Any],
    time: Scalar,
    event: Float[Array, "*event"],
    context: Context,
    context_shape: tuple[int, ...],
    has_features: bool,
) -> tuple[Float[Array, "*event"], Hidden | None]:
    """Call the user's callable; return its output and its hidden features, or None if it returns no features."""
    output = network(time, event, None if context_shape == (0,) else context.reshape(context_shape))
    if not has_features:
        return output, None
    velocity, hidden = output
    if event.ndim > 1 and hidden.shape[:-1] == event.shape[:-1]:
        return velocity, hidden.reshape(-1, hidden.shape[-1])
    return velocity, jnp.ravel(hidden)


def check_output(
    caller: str,
    network: Callable[..., Any],
    scaling: Scaling,
    context_scaling: Scaling,
    own: Callable[..., Any] | None = None,
) -> bool:
    """Check the output of a callable, and return whether it also returns hidden features.

    If `network` wraps the user's callable, `own` is the callable inside.

    Raises:
        TypeError: if the callable does not accept the three arguments.
        ValueError: if the output does not have the shape of the event.
    """
    time, event = jnp.zeros(()), jax.ShapeDtypeStruct(scaling.event_shape, jnp.result_type(float))
    shape = context_scaling.event_shape
    context = None if shape == (0,) else jnp.zeros(shape)
    try:
        output = eqx.filter_eval_shape(network, time, event, context)
    except TypeError:
        _check_arguments(caller, network if own is None else own)
        raise
    has_features = isinstance(output, tuple) and len(output) == 2
    got = getattr(output[0] if has_features else output, "shape", None)
    if got != scaling.event_shape:
        raise ValueError(
            f"{caller} expected the callable's output in the shape of one event, {scaling.event_shape}; got {got}. It is called "
            "as (t, x, context) with one event and no batch axis. "
            "Fix: network = jax.tree_util.Partial("
            "lambda network, t, x, context: jax.numpy.resize(network(t, x[None], context), x.shape), network)"
        )
    return has_features


def _check_arguments(caller: str, network: Callable[..., Any]) -> None:
    """Raise a TypeError with a fix if the signature of a callable does not accept the three arguments."""
    try:
        signature = inspect.signature(network)
    except ValueError:
        return  # A callable that is not written in Python may have no signature.
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"{caller} expected a callable (t, x, context), where context is None for an unconditional velocity; got one with "
            f"the signature {signature}: {error}. "
            "Fix: network = jax.tree_util.Partial(lambda network, t, x, context: network(t, x), network)"
        ) from error


def _base_scaling(base: dist.Distribution) -> Scaling:
    # Masked distributions are not unwrapped, because the mask would be lost.
    inner = unwrapped(base, masked=False)
    if not isinstance(inner, dist.Normal | dist.MultivariateNormal) or base.batch_shape != ():
        raise TypeError(
            f"VelocityField expected `base` to be a normal distribution without batch axes; got {type(inner).__name__} with "
            f"batch shape {getattr(base, 'batch_shape', None)}. "
            f"Fix: base = dist.Normal(0.0, 1.0).expand({_event_of(base)}).to_event()"
        )
    if isinstance(inner, dist.MultivariateNormal) and len(base.event_shape) != 1:
        raise TypeError(
            "VelocityField expected a multivariate normal `base` with one-dimensional events; got events of shape "
            f"{base.event_shape}. Flatten correlated coordinates into one vector. "
            "Fix: base = dist.Normal(base.mean, base.variance**0.5).to_event()"
        )
    location = np.ravel(np.asarray(base.mean, np.float64))
    if isinstance(inner, dist.MultivariateNormal):
        scale = np.asarray(inner.scale_tril, np.float64)
    else:
        # Read the scale itself: the variance may overflow or underflow in float32.
        scale = np.ravel(np.broadcast_to(np.asarray(inner.scale, np.float64), base.event_shape))
    return Scaling(location, scale, constraints.real, base.event_shape)


def _event_of(base: Any) -> list[int]:
    """Event shape that the user probably meant: batch axes and event axes of the base, or `[2]` if it has no shape."""
    return [*getattr(base, "batch_shape", ()), *getattr(base, "event_shape", ())] or [2]
