"""Gaussian densities with an error of known form, whose posteriors under a Gaussian likelihood are known in closed form."""

import inspect
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
from references import GAUSSIAN_COVARIANCE, GAUSSIAN_MEAN

import flowdensity as fd

SOLVER = fd.FixedStep(8)
NONE = np.zeros((2, 2))


class Planted(fd.divergences.AbstractDivergence):
    r"""The exact divergence plus $\frac{d}{d\phi} \sin^2\phi\,e(y_\phi, c)$ along the ODE: `log_prob` is less by e at the event.

    Of a Gaussian flow. $e(y, c) = b \cdot y + \tfrac12 y^\top B y + l \cdot c$ in whitened units, which for these
    flows are centered ones.
    """

    slope: jax.Array
    bend: jax.Array
    lean: jax.Array

    def __init__(self, slope: Any, bend: Any = None, lean: Any = ()):
        size = len(slope)
        self.slope = jnp.asarray(slope, float)
        self.bend = jnp.zeros((size, size)) if bend is None else jnp.asarray(bend, float)
        self.lean = jnp.asarray(lean, float)

    def __call__(self, model, time, state, context):
        velocity = model.velocity(time, state, context)
        sine, cosine, spread = jnp.sin(time), jnp.cos(time), model.eigenvalues
        # The closed form of the exact divergence: there is less of it to compile.
        divergence = jnp.sum(cosine * sine * (spread - 1.0) / (sine**2 * spread + cosine**2))
        error = self.slope @ state + 0.5 * state @ self.bend @ state
        error += self.lean @ context if self.lean.size else 0.0
        rise = (self.slope + self.bend @ state) @ velocity
        return velocity, divergence + sine**2 * rise + 2.0 * sine * cosine * error


def tilted(
    mean: np.ndarray, covariance: np.ndarray, slope: np.ndarray, bend: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the Gaussian whose log density is less by the planted error."""
    changed = np.linalg.inv(np.linalg.inv(covariance) + bend)
    return mean - changed @ slope, changed


def observed(
    y: np.ndarray, noise: float, mean: np.ndarray = GAUSSIAN_MEAN, covariance: np.ndarray = GAUSSIAN_COVARIANCE
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the posterior given y = x + noise e."""
    precision = np.linalg.inv(covariance)
    posterior = np.linalg.inv(precision + np.eye(len(mean)) / noise**2)
    return posterior @ (precision @ mean + y / noise**2), posterior


def in_arviz(posterior: dict[str, np.ndarray], coords: Any = None, dims: Any = None, **groups: Any) -> Any:
    """InferenceData of arviz 0.23, DataTree of arviz 1."""
    groups = {"posterior": posterior} | groups
    if "posterior" in inspect.signature(arviz.from_dict).parameters:
        return arviz.from_dict(**groups, coords=coords, dims=dims)
    return arviz.from_dict(groups, coords=coords, dims=dims)
