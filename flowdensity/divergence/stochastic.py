"""Divergences estimated with random probes."""

from collections.abc import Callable
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_choice, check_count, check_key
from .._registry import savable
from .._typing import Array, Context, Float, Key, Scalar, State
from ..models.flows import AbstractProbabilityFlow
from .exact import ExactDivergence
from .gram_schmidt import gram_schmidt
from .interface import AbstractDivergence

MAX_EXACT_DIMENSION = 16
"""Up to this dimension a model in training has its exact divergence; above it a noisy probe is the better use of time."""

Probes = Literal["rademacher", "gaussian"]
MAX_PROBES = 100_000
"""Maximum number of probes: a larger number is a slip, or a malicious file."""


@savable
class HutchinsonDivergence(AbstractDivergence):
    r"""$\frac1k \sum_i v_i^\top (\partial F/\partial y)\, v_i$ with random probes $v_i$ (Hutchinson 1989).

    Unbiased for the divergence, with a standard deviation that grows with the off-diagonal Jacobian. The probes
    follow from the key alone: the same for every event and every time, so `log_prob` is a deterministic, smooth
    function, and only another key gives another error.

    Args:
        key: JAX PRNG key of the probes.
        probes: number of probes, each of which takes one product with the Jacobian.
        distribution: "rademacher", whose error is never larger, or "gaussian".

    Raises:
        TypeError: if `key` is no key.
        ValueError: if `probes` is no integer of at least 1, or the distribution is unknown.
    """

    key: Key
    probes: int = eqx.field(static=True, default=1)
    distribution: Probes = eqx.field(static=True, default="rademacher")

    def __check_init__(self) -> None:
        check_key("HutchinsonDivergence", self.key)
        check_count("HutchinsonDivergence", "probes", self.probes, most=MAX_PROBES, fix=1)
        check_choice("HutchinsonDivergence", "distribution", self.distribution, Probes, fix="rademacher")

    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        probes = _draw(self.key, (self.probes, state.size), state.dtype, self.distribution)
        velocity, tangent = jax.linearize(lambda y: model.velocity(time, y, context), state)
        return velocity, _quadratic(tangent, probes) / self.probes


@savable
class HutchPlusPlusDivergence(AbstractDivergence):
    r"""Hutchinson's estimate of what a low-rank part of the Jacobian leaves (Meyer et al. 2021, arXiv 2010.09649).

    A third of the products with the Jacobian $J$ finds an orthonormal basis $Q$ of its range, a third takes the trace on it,
    and the last estimates that on the rest: with $P = I - QQ^\top$,

    $$\operatorname{tr}(Q^\top J Q) + \frac1m \sum_i v_i^\top P J P\, v_i .$$

    Unbiased, and better than Hutchinson's at the same cost where few singular values dominate. The probes follow from the key
    alone, as in `HutchinsonDivergence`. With $m \ge D$ it is exact.

    Args:
        key: JAX PRNG key of the probes.
        probes: number of products with the Jacobian in all; a multiple of 3.
        distribution: of the $v_i$, "rademacher" or "gaussian".

    Raises:
        TypeError: if `key` is no key.
        ValueError: if `probes` is not a positive multiple of 3, or the distribution is unknown.
    """

    key: Key
    probes: int = eqx.field(static=True, default=3)
    distribution: Probes = eqx.field(static=True, default="rademacher")

    def __check_init__(self) -> None:
        check_key("HutchPlusPlusDivergence", self.key)
        check_count("HutchPlusPlusDivergence", "probes", self.probes, least=3, most=MAX_PROBES, fix=3)
        if self.probes % 3 != 0:
            raise ValueError(
                f"HutchPlusPlusDivergence expected `probes` as a multiple of 3, a third for each part; got {self.probes}. "
                f"Fix: probes={max(3, 3 * round(self.probes / 3))}"
            )
        check_choice("HutchPlusPlusDivergence", "distribution", self.distribution, Probes, fix="rademacher")

    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        third = self.probes // 3
        velocity, tangent = jax.linearize(lambda y: model.velocity(time, y, context), state)
        sketch_key, probe_key = jr.split(self.key)
        sketch = jr.normal(sketch_key, (min(third, state.size), state.size), state.dtype)
        probes = _draw(probe_key, (third, state.size), state.dtype, self.distribution)
        # A trace of the sketch itself keeps the basis, and its derivative, defined where the Jacobian vanishes.
        image = jax.vmap(tangent)(sketch) + jnp.sqrt(jnp.finfo(state.dtype).eps) * sketch
        basis = gram_schmidt(image)
        left = probes - (probes @ basis.T) @ basis
        return velocity, _quadratic(tangent, basis) + _quadratic(tangent, left) / third


def unbiased_divergence(key: Key, dim: int, probes: int = 1) -> AbstractDivergence:
    """What a model that is still being trained uses, for which a distilled divergence would be stale after a step.

    Exact in up to sixteen dimensions, or in as many as there are probes; above, Hutchinson's estimate leaves gradients unbiased
    if every step has a fresh key (Grathwohl et al. 2019, arXiv 1810.01367).
    """
    return ExactDivergence() if dim <= max(MAX_EXACT_DIMENSION, probes) else HutchinsonDivergence(key, probes)


def _quadratic(tangent: Callable[[State], State], vectors: Float[Array, "count dim"]) -> Scalar:
    """Sum of v . J v."""
    return jnp.sum(vectors * jax.vmap(tangent)(vectors))


def _draw(key: Key, shape: tuple[int, ...], dtype: jnp.dtype, distribution: Probes) -> Array:
    return jr.rademacher(key, shape, dtype) if distribution == "rademacher" else jr.normal(key, shape, dtype)
