r"""Gaussian probability paths from noise to data, with the angle as common time.

A path $x_t = a(t)\,x_1 + s(t)\,e$ with $e \sim N(0, I)$, divided by $q = \sqrt{a^2 + s^2}$, is a quarter circle
in the angle $\phi = \operatorname{atan2}(a, s)$,

$$y_\phi = \sin\phi\,x_1 + \cos\phi\,e .$$

All paths therefore share one ODE. They differ in the angles at which the network is trained and the solver steps. The angles of
training are set by the path's own time $t \in [0, 1]$, which runs from noise to data for flows and diffusions alike.

Some paths start at an angle above 0: `VariancePreserving` because $a(0) > 0$, and `VarianceExploding` because its largest noise
is finite. `VarianceExploding` also stops below $\pi/2$, at its smallest noise. Each model decides how to treat these ends.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_number
from .._display import shown
from .._registry import savable
from .._typing import Array, Float, Key, Times


class AbstractPath(eqx.Module):
    """A Gaussian path: the coefficients of data and noise as functions of t in [0, 1]."""

    def __repr__(self) -> str:
        return shown(self)

    @abstractmethod
    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Coefficients `a` of the data and `s` of the noise at path time t in [0, 1]."""

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""Angle $\phi = \operatorname{atan2}(a(t), s(t))$ in $[0, \pi/2]$ at path time t in [0, 1]."""
        a, s = self.coefficients(t)
        return jnp.arctan2(a, s)

    def grid(self, steps: int) -> Times:
        """Angles at the endpoints of `steps` equal steps of path time, from the start of the path, shape `(steps + 1,)`."""
        return self.angle(jnp.linspace(0.0, 1.0, steps + 1))

    def angle_left(self, steps: int) -> Times:
        """Angles that are left to the data at the endpoints of a solver's steps, as fractions of all, shape `(steps + 1,)`.

        Narrow densities turn the velocity sharply near the data, so steps are shorter there: they are equal in the root of the
        angle that is left.
        """
        return jnp.square(jnp.linspace(1.0, 0.0, steps + 1))


@savable
class CondOT(AbstractPath):
    r"""The path of straight lines from noise to data, $a = t$, $s = 1 - t$ (Lipman et al. 2023, arXiv 2210.02747).

    Examples:
        >>> path = fd.paths.CondOT()
        >>> path.grid(4)  # angles at equal steps of path time, from noise to data
    """

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return t, 1.0 - t


@savable
class Trigonometric(AbstractPath):
    r"""The path of constant angular speed, $a = \sin(\pi t/2)$, $s = \cos(\pi t/2)$ (Albergo et al. 2023, arXiv 2303.08797).

    Examples:
        >>> path = fd.paths.Trigonometric()
        >>> density, report = fd.fit_flow(key, data, path=path)
    """

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return jnp.sin(0.5 * jnp.pi * t), jnp.cos(0.5 * jnp.pi * t)

    def angle_left(self, steps: int) -> Times:
        """Equal steps of the angle, since flows that are trained on a likelihood may turn anywhere."""
        return jnp.linspace(1.0, 0.0, steps + 1)


@savable
class VariancePreserving(AbstractPath):
    r"""The path of the variance-preserving diffusion with a linear rate, $a^2 + s^2 = 1$ (Song et al. 2021, arXiv 2011.13456).

    The coefficient of the data is $a = \exp(-B/2)$ with $B = \beta_{\min}\tau + (\beta_{\max} - \beta_{\min})\tau^2/2$ at
    diffusion time $\tau = 1 - t$. The path starts at the angle $\arcsin a(0)$, 0.0066 by default, and stops at $\pi/2$.

    Args:
        beta_min: rate at the data, per unit of diffusion time.
        beta_max: rate at the noise, per unit of diffusion time.

    Raises:
        ValueError: if a rate is not above 0, or `beta_min` is above `beta_max`.

    Examples:
        >>> path = fd.paths.VariancePreserving(beta_max=10.0)
        >>> density, report = fd.fit_diffusion(key, data, path=path)
    """

    beta_min: float = eqx.field(static=True, default=0.1)
    beta_max: float = eqx.field(static=True, default=20.0)

    def __check_init__(self) -> None:
        check_number("VariancePreserving", "beta_min", self.beta_min, 0.0, fix=0.1)
        check_number("VariancePreserving", "beta_max", self.beta_max, 0.0, fix=20.0)
        if not self.beta_min <= self.beta_max:
            raise ValueError(
                f"VariancePreserving expected `beta_min` <= `beta_max`; got {self.beta_min} and {self.beta_max}. "
                "Fix: beta_min, beta_max = 0.1, 20.0"
            )

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        left = 1.0 - t
        total = self.beta_min * left + 0.5 * (self.beta_max - self.beta_min) * jnp.square(left)
        return jnp.exp(-0.5 * total), jnp.sqrt(-jnp.expm1(-total))


@savable
class VarianceExploding(AbstractPath):
    r"""The path of the variance-exploding diffusion, $a = 1$ and $s = \sigma_{\max}^{1 - t}\sigma_{\min}^{t}$.

    See Song et al. (2021, arXiv 2011.13456). The path starts at the angle $\arctan(1/\sigma_{\max})$ and stops at
    $\arctan(1/\sigma_{\min})$. By default both are 0.01 from the ends of the quarter circle.

    Args:
        sigma_min: smallest noise level, in standard deviations of the data.
        sigma_max: largest noise level, in standard deviations of the data.

    Raises:
        ValueError: if a noise level is not above 0, or `sigma_min` is not below `sigma_max`.

    Examples:
        >>> path = fd.paths.VarianceExploding(sigma_max=50.0)
        >>> density, report = fd.fit_diffusion(key, data, path=path)
    """

    sigma_min: float = eqx.field(static=True, default=0.01)
    sigma_max: float = eqx.field(static=True, default=100.0)

    def __check_init__(self) -> None:
        check_number("VarianceExploding", "sigma_min", self.sigma_min, 0.0, fix=0.01)
        check_number("VarianceExploding", "sigma_max", self.sigma_max, 0.0, fix=100.0)
        if not self.sigma_min < self.sigma_max:
            raise ValueError(
                f"VarianceExploding expected `sigma_min` < `sigma_max`; got {self.sigma_min} and {self.sigma_max}. "
                "Fix: sigma_min, sigma_max = 0.01, 100.0"
            )

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        low, high = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
        return jnp.ones_like(t), jnp.exp(high + t * (low - high))


def stratified_times(key: Key, count: int) -> Times:
    """Draw one uniform time in each of `count` equal parts of [0, 1]."""
    return (jnp.arange(count) + jr.uniform(key, (count,))) / count
