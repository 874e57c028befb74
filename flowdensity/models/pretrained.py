r"""Pretrained diffusion networks, converted from their own conventions to the Gaussian path.

The input of a variance-preserving network is $x_t = \sqrt{\bar\alpha}\,x_1 + \sqrt{1 - \bar\alpha}\,e$, which is $y_\phi$
with $\sin\phi = \sqrt{\bar\alpha}$. The input of a variance-exploding network is $x_1 + \sigma e = y_\phi/\sin\phi$ with
$\sigma = \cot\phi$. `velocity_coefficients` turns the network's prediction into a velocity.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from .._arrays import Fixes
from .._checks import check_choice, check_number, check_shape, real_array
from .._registry import savable
from .._typing import Array, ArrayLike, Context, Float, Hidden, Scalar, State, Times
from ..data.scaling import Scaling
from .fields import call, check_output, context_identity, identity_scaling, wrap
from .flows import AbstractGaussianFlow, Prediction, scale_of_gain, velocity_coefficients, zero_velocity
from .paths import AbstractPath, VarianceExploding

DDPM_SCHEDULE = "betas = numpy.linspace(1e-4, 0.02, 1000)"
"""Line of code that makes the noise schedule of DDPM."""


class AbstractClock(eqx.Module):
    """The network's own time, as a function of the angle."""

    @abstractmethod
    def __call__(self, angle: Scalar) -> Scalar:
        """The network's own time at an angle."""


@savable
class Table(AbstractClock):
    """Linear interpolation between the network's own steps.

    Args:
        angles: increasing angles, shape `(steps,)`.
        labels: the network's own time at each angle, shape `(steps,)`.
    """

    angles: Times
    labels: Times

    def __call__(self, angle: Scalar) -> Scalar:
        return jnp.interp(angle, self.angles, self.labels)


@savable
class Sigma(AbstractClock):
    r"""The noise level $\sigma = \sigma_{\mathrm{data}}\cot\phi$ as the network's time, in the units of the data.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = eqx.field(static=True)

    def __call__(self, angle: Scalar) -> Scalar:
        return self.sigma_data / jnp.tan(angle)


@savable
class Discrete(AbstractPath):
    """A path given by its angles at equally spaced times.

    Args:
        angles: increasing angles, shape `(steps,)`.
    """

    angles: Times

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        angle = jnp.interp(t, jnp.linspace(0.0, 1.0, len(self.angles)), self.angles)
        return jnp.sin(angle), jnp.cos(angle)


@savable
class PretrainedDiffusion(AbstractGaussianFlow):
    r"""A pretrained diffusion network on its Gaussian path, made by `from_ddpm` or `from_edm`.

    The flow starts from $N(0, I)$ at the angle of the largest noise in training, and stops at the angle of the smallest.
    `log_prob` is the log density of the data with the noise that remains at that last angle, of size $\cos\phi$.

    Examples:
        >>> model = fd.from_edm(lambda c_noise, x, context: -0.1 * x, (2,))
        >>> model.denoised(0.5, jnp.zeros(2), jnp.zeros(0))
        >>> fd.FlowDensity(model).log_prob(data[:5])
    """

    network: Callable[..., Any]
    path: AbstractPath
    clock: AbstractClock
    prediction: Prediction = eqx.field(static=True)
    has_features: bool = eqx.field(static=True)
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar

    def network_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        event = state.reshape(self.event_shape)
        output, hidden = call(self.network, self.clock(time), event, context, self.context_shape, self.has_features)
        alpha, beta = velocity_coefficients(self.prediction, time)
        return alpha * state + beta * jnp.ravel(output), hidden

    def reference_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        return zero_velocity(state)

    def velocity_scale(self, time: Scalar) -> Scalar:
        return scale_of_gain(velocity_coefficients(self.prediction, time)[1])

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.path.angle(t)

    def times(self, steps: int) -> Times:
        return self.path.grid(steps)


def from_ddpm(
    network: Callable[..., Any],
    event_shape: tuple[int, ...],
    *,
    betas: ArrayLike,
    predicts: Prediction = "noise",
    context_shape: tuple[int, ...] | None = None,
) -> PretrainedDiffusion:
    r"""Convert a network trained under the DDPM convention to a probability flow (Ho et al. 2020, arXiv 2006.11239).

    Step $i$ of $0, \dots, T - 1$ mixes data and noise as $x = \sqrt{\bar\alpha_i}\,x_1 + \sqrt{1 - \bar\alpha_i}\,e$ with
    $\bar\alpha_i = \prod_{j \le i}(1 - \beta_j)$. The flow runs over all steps, with $i$ as a continuous number.

    Args:
        network: `(i, x, context) -> prediction` for one event, in the scaling of its training; context is None for an
            unconditional network. If it returns a pair, the second element is used as hidden features.
        event_shape: shape of one event.
        betas: the noise schedule, shape `(T,)`, first step first.
        predicts: "noise" $e$, "data" $x_1$, "score" of $x$, or "velocity" $v = \sqrt{\bar\alpha}\,e - \sqrt{1 - \bar\alpha}\,x_1$
            (Salimans and Ho 2022, arXiv 2202.00512).
        context_shape: shape of one context; None for an unconditional network.

    Returns:
        The model, for `FlowDensity` and `fit_divergence`.

    Raises:
        TypeError: if `network` cannot be called with these arguments, or a shape argument is not a shape.
        ValueError: if the schedule or `predicts` is invalid, or the prediction does not have the shape of the event.

    Examples:
        >>> network = lambda i, x, context: x  # in practice, a trained network
        >>> model = fd.from_ddpm(network, (2,), betas=np.linspace(1e-4, 0.02, 1000))
        >>> fd.FlowDensity(model).sample(key, (100,))
    """
    rates = real_array("from_ddpm", "betas", betas, Fixes(categories=DDPM_SCHEDULE))
    if rates.ndim != 1 or len(rates) < 2 or not np.all((rates > 0.0) & (rates < 1.0)):
        raise ValueError(
            f"from_ddpm expected `betas` with shape (T,), T >= 2, each between 0 and 1; got shape {rates.shape}. "
            f"Fix: {DDPM_SCHEDULE}"
        )
    check_choice("from_ddpm", "predicts", predicts, Prediction, fix="noise")
    kept = np.cumprod(1.0 - rates)
    angles = jnp.asarray(np.arctan2(np.sqrt(kept), np.sqrt(1.0 - kept))[::-1], float)
    labels = jnp.arange(len(rates), dtype=angles.dtype)[::-1]
    network = wrap(network)
    return _pretrained(
        "from_ddpm",
        Negated(network) if predicts == "velocity" else network,
        Discrete(angles),
        Table(angles, labels),
        predicts,
        identity_scaling(check_shape("from_ddpm", "event_shape", event_shape, fix="(2,)")),
        context_shape,
        network,
    )


def from_edm(
    network: Callable[..., Any],
    event_shape: tuple[int, ...],
    *,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    preconditioned: bool = False,
    context_shape: tuple[int, ...] | None = None,
) -> PretrainedDiffusion:
    r"""Convert a network trained under the EDM convention to a probability flow (Karras et al. 2022, arXiv 2206.00364).

    The preconditioned denoiser is $D = c_{\mathrm{skip}}x + c_{\mathrm{out}}F_\theta(c_{\mathrm{in}}x, c_{\mathrm{noise}})$.
    In units of `sigma_data`, its raw network $F_\theta$ *is* the velocity on the Gaussian path.

    Args:
        network: the raw network `(c_noise, x, context)`, with $c_{\mathrm{noise}} = \ln(\sigma)/4$ and an input of unit
            variance; or, if `preconditioned`, the denoiser `(sigma, x, context)` around it.
        event_shape: shape of one event.
        sigma_data: standard deviation of the data, as in training.
        sigma_min: smallest noise level; the density is that of the data with noise of this size.
        sigma_max: largest noise level.
        preconditioned: whether `network` is the denoiser.
        context_shape: shape of one context; None for an unconditional network.

    Returns:
        The model, for `FlowDensity` and `fit_divergence`.

    Raises:
        TypeError: if `network` cannot be called with these arguments, or a shape argument is not a shape.
        ValueError: if a noise level is invalid, or the output does not have the shape of the event.

    Examples:
        >>> network = lambda c_noise, x, context: -0.1 * x  # in practice, a trained network
        >>> model = fd.from_edm(network, (2,))
        >>> fd.FlowDensity(model).sample(key, (100,))
    """
    sigma_data = check_number("from_edm", "sigma_data", sigma_data, 0.0, fix=0.5)
    sigma_min = check_number("from_edm", "sigma_min", sigma_min, 0.0, fix=0.002)
    sigma_max = check_number("from_edm", "sigma_max", sigma_max, 0.0, fix=80.0)
    if not sigma_min < sigma_max:
        raise ValueError(
            f"from_edm expected `sigma_min` < `sigma_max`; got {sigma_min} and {sigma_max}. "
            "Fix: sigma_min, sigma_max = 0.002, 80.0"
        )
    event_shape = check_shape("from_edm", "event_shape", event_shape, fix="(2,)")
    size = math.prod(event_shape)
    scaling = Scaling(np.zeros(size), np.full(size, sigma_data), constraints.real, event_shape)
    network = wrap(network)
    return _pretrained(
        "from_edm",
        Denoiser(network, sigma_data) if preconditioned else Raw(network),
        VarianceExploding(sigma_min / sigma_data, sigma_max / sigma_data),
        Sigma(sigma_data),
        "data" if preconditioned else "velocity",
        scaling,
        context_shape,
        network,
    )


@savable
class Negated(eqx.Module):
    """A network with a negated output."""

    network: Callable[..., Any]

    def __call__(self, time: Scalar, event: Array, context: Array | None) -> Any:
        return _on_output(lambda output: -output, self.network(time, event, context))


@savable
class Raw(eqx.Module):
    r"""EDM's raw network as a function of the noise level $\sigma$; the network itself takes $\ln(\sigma)/4$."""

    network: Callable[..., Any]

    def __call__(self, sigma: Scalar, event: Array, context: Array | None) -> Any:
        return self.network(0.25 * jnp.log(sigma), event, context)


@savable
class Denoiser(eqx.Module):
    """EDM's denoiser, with the input scaled as on the Gaussian path and the output in standard deviations of the data."""

    network: Callable[..., Any]
    sigma_data: float = eqx.field(static=True)

    def __call__(self, sigma: Scalar, event: Array, context: Array | None) -> Any:
        noisy = event * jnp.sqrt(self.sigma_data**2 + jnp.square(sigma))
        return _on_output(lambda output: output / self.sigma_data, self.network(sigma, noisy, context))


def _on_output(function: Callable[[Array], Array], output: Any) -> Any:
    return (function(output[0]), output[1]) if isinstance(output, tuple) else function(output)


def _pretrained(
    caller: str,
    network: Callable[..., Any],
    path: AbstractPath,
    clock: AbstractClock,
    prediction: Prediction,
    scaling: Scaling,
    context_shape: tuple[int, ...] | None,
    own: Callable[..., Any],
) -> PretrainedDiffusion:
    context_scaling = context_identity(caller, context_shape)
    return PretrainedDiffusion(
        network=network,
        path=path,
        clock=clock,
        prediction=prediction,
        has_features=check_output(caller, network, scaling, context_scaling, own),
        scaling=scaling,
        context_scaling=context_scaling,
        reach=jnp.asarray(jnp.inf),
    )
