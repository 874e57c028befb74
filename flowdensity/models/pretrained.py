r"""Pretrained diffusion networks, from their own conventions to the Gaussian path.

A network of the variance-preserving family is handed $x_t = \sqrt{\bar\alpha}\,x_1 + \sqrt{1 - \bar\alpha}\,e$. This is $y_\phi$
itself with $\sin\phi = \sqrt{\bar\alpha}$. One of the variance-exploding family is handed
$x_1 + \sigma e = y_\phi/\sin\phi$ with $\sigma = \cot\phi$. `velocity_coefficients` turns what it predicts into a velocity.
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
"""The line of code that makes the schedule of DDPM."""


class AbstractClock(eqx.Module):
    """The time that a network is told, as a function of the angle."""

    @abstractmethod
    def __call__(self, angle: Scalar) -> Scalar:
        """The network's own time at an angle."""


@savable
class Table(AbstractClock):
    """Linear interpolation between the network's own steps.

    Args:
        angles: increasing angles, shape `(steps,)`.
        labels: what the network is told at each, shape `(steps,)`.
    """

    angles: Times
    labels: Times

    def __call__(self, angle: Scalar) -> Scalar:
        return jnp.interp(angle, self.angles, self.labels)


@savable
class Sigma(AbstractClock):
    r"""$\sigma = \sigma_{\mathrm{data}}\cot\phi$, in the units of the data.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = eqx.field(static=True)

    def __call__(self, angle: Scalar) -> Scalar:
        return self.sigma_data / jnp.tan(angle)


@savable
class Discrete(AbstractPath):
    """A path given by its angles at equal steps of its time.

    Args:
        angles: increasing angles, shape `(steps,)`.
    """

    angles: Times

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        angle = jnp.interp(t, jnp.linspace(0.0, 1.0, len(self.angles)), self.angles)
        return jnp.sin(angle), jnp.cos(angle)


@savable
class PretrainedDiffusion(AbstractGaussianFlow):
    r"""A pretrained diffusion network on its Gaussian path; made by `from_ddpm` and `from_edm`.

    It runs from the angle where its training started, from $N(0, I)$, to that where it stopped: `log_prob` is that of the
    data with noise of $\cos\phi$ at that last angle.
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
    r"""A network trained under the DDPM convention, as a probability flow (Ho et al. 2020, arXiv 2006.11239).

    Step $i$ of $0, \dots, T - 1$ mixes data and noise as $x = \sqrt{\bar\alpha_i}\,x_1 + \sqrt{1 - \bar\alpha_i}\,e$ with
    $\bar\alpha_i = \prod_{j \le i}(1 - \beta_j)$. The flow runs over all of them, with $i$ as a continuous number.

    Args:
        network: `(i, x, context) -> prediction`, of one event in the scaling it was trained with; context is None for an
            unconditional network. If it returns a pair, the second is taken as hidden features.
        event_shape: shape of one event.
        betas: the schedule, shape `(T,)`, first step first.
        predicts: "noise" $e$, "data" $x_1$, "score" of $x$, or "velocity" $v = \sqrt{\bar\alpha}\,e - \sqrt{1 - \bar\alpha}\,x_1$
            (Salimans and Ho 2022, arXiv 2202.00512).
        context_shape: shape of one context; None for an unconditional network.

    Returns:
        The model, for `FlowDensity` and `fit_divergence`.

    Raises:
        TypeError: if `network` cannot be called as it should, or a shape is none.
        ValueError: if the schedule, `predicts` or the shape of the prediction is unusable.
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
    r"""A network trained under the EDM convention, as a probability flow (Karras et al. 2022, arXiv 2206.00364).

    In units of `sigma_data` the raw network $F_\theta$ of the preconditioned denoiser
    $D = c_{\mathrm{skip}}x + c_{\mathrm{out}}F_\theta(c_{\mathrm{in}}x, c_{\mathrm{noise}})$ *is* the
    velocity on the Gaussian path.

    Args:
        network: the raw network `(c_noise, x, context)`, with $c_{\mathrm{noise}} = \ln(\sigma)/4$ and its input of unit
            variance; or, if `preconditioned`, the denoiser `(sigma, x, context)` around it.
        event_shape: shape of one event.
        sigma_data: standard deviation of the data, as in training.
        sigma_min: least noise; the density is that of the data with noise of this size.
        sigma_max: largest noise.
        preconditioned: whether `network` is the denoiser.
        context_shape: shape of one context; None for an unconditional network.

    Returns:
        The model, for `FlowDensity` and `fit_divergence`.

    Raises:
        TypeError: if `network` cannot be called as it should, or a shape is none.
        ValueError: if a noise level or the shape of the output is unusable.
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
    """A callable with its output negated."""

    network: Callable[..., Any]

    def __call__(self, time: Scalar, event: Array, context: Array | None) -> Any:
        return _on_output(lambda output: -output, self.network(time, event, context))


@savable
class Raw(eqx.Module):
    """EDM's raw network, told the logarithm of the noise."""

    network: Callable[..., Any]

    def __call__(self, sigma: Scalar, event: Array, context: Array | None) -> Any:
        return self.network(0.25 * jnp.log(sigma), event, context)


@savable
class Denoiser(eqx.Module):
    """EDM's denoiser, in units of the standard deviation of the data and of the Gaussian path."""

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
