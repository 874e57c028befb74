r"""Gaussian paths from noise to data, seen as one circle.

A path $x_t = a(t)\,x_1 + s(t)\,e$ with $e \sim N(0, I)$, divided by $q = \sqrt{a^2 + s^2}$, is a quarter circle
in the angle $\phi = \operatorname{atan2}(a, s)$,

$$y_\phi = \sin\phi\,x_1 + \cos\phi\,e .$$

So paths do not differ in the ODE that is solved but in *where along the circle* they train and step:
both follow the path's own time $t \in [0, 1]$.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp

from .._typing import Array, Float, Times


class AbstractPath(eqx.Module):
    """A Gaussian path: the coefficients of data and noise as functions of t in [0, 1]."""

    @abstractmethod
    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        """Coefficient `a` of the data and `s` of the noise, at path time t in [0, 1]."""

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""Angle $\phi = \operatorname{atan2}(a(t), s(t))$ in $[0, \pi/2]$, at path time t in [0, 1]."""
        a, s = self.coefficients(t)
        return jnp.arctan2(a, s)

    def grid(self, steps: int) -> Times:
        """Angles of `steps` equal steps of path time, from noise to data, shape `(steps + 1,)`."""
        return self.angle(jnp.linspace(0.0, 1.0, steps + 1))


class CondOT(AbstractPath):
    r"""Straight lines from noise to data, $a = t$, $s = 1 - t$ (Lipman et al. 2023, arXiv 2210.02747)."""

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return t, 1.0 - t


class Trigonometric(AbstractPath):
    r"""Constant speed on the circle, $a = \sin(\pi t/2)$, $s = \cos(\pi t/2)$ (Albergo et al. 2023, arXiv 2303.08797)."""

    def coefficients(self, t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        return jnp.sin(0.5 * jnp.pi * t), jnp.cos(0.5 * jnp.pi * t)
