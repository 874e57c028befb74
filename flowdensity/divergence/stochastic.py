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
"""Up to this dimension a model in training uses its exact divergence. Above it, noisy probes give more progress per time."""

Probes = Literal["rademacher", "gaussian"]
MAX_PROBES = 100_000
"""Maximum number of probes. A larger number is a mistake or comes from a malicious file."""


@savable
class HutchinsonDivergence(AbstractDivergence):
    r"""Hutchinson's estimate $\frac1k \sum_i v_i^\top (\partial F/\partial y)\, v_i$ with random probes $v_i$ (Hutchinson 1989).

    It is unbiased, with a standard deviation that grows with the off-diagonal Jacobian. The probes depend only on the key: they
    are the same for every event and every time. `log_prob` is therefore a deterministic, smooth function, and its error changes
    only with the key.

    Args:
        key: JAX PRNG key of the probes.
        probes: number of probes. Each takes one product with the Jacobian.
        distribution: "rademacher", whose error is never larger, or "gaussian".

    Raises:
        TypeError: if `key` is not a key.
        ValueError: if `probes` is not an integer of at least 1, or the distribution is unknown.

    Examples:
        >>> noisy = density.with_divergence(fd.HutchinsonDivergence(key, probes=4))
        >>> noisy.log_prob(data[:5])
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
    r"""Hutch++ estimate: an exact trace on a low-rank subspace and Hutchinson's estimate on the rest (arXiv 2010.09649).

    The products with the Jacobian $J$ are divided into thirds (Meyer et al. 2021). One third finds an orthonormal basis $Q$ of
    the range of $J$, one third computes the trace on $Q$, and one third estimates the trace on the rest. With $P = I - QQ^\top$,
    the estimate is

    $$\operatorname{tr}(Q^\top J Q) + \frac1m \sum_i v_i^\top P J P\, v_i .$$

    It is unbiased, and more accurate than Hutchinson's estimate at the same cost if few singular values dominate. With
    $m \ge D$ it is exact. The probes depend only on the key, as in `HutchinsonDivergence`.

    Args:
        key: JAX PRNG key of the probes.
        probes: total number of products with the Jacobian; a multiple of 3.
        distribution: distribution of the $v_i$, "rademacher" or "gaussian".

    Raises:
        TypeError: if `key` is not a key.
        ValueError: if `probes` is not a positive multiple of 3, or the distribution is unknown.

    Examples:
        >>> noisy = density.with_divergence(fd.HutchPlusPlusDivergence(key, probes=6))
        >>> noisy.log_prob(data[:5])
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
        # The added multiple of the sketch keeps the basis and its derivative defined where the Jacobian vanishes.
        image = jax.vmap(tangent)(sketch) + jnp.sqrt(jnp.finfo(state.dtype).eps) * sketch
        basis = gram_schmidt(image)
        left = probes - (probes @ basis.T) @ basis
        return velocity, _quadratic(tangent, basis) + _quadratic(tangent, left) / third


def unbiased_divergence(key: Key, dim: int, probes: int = 1) -> AbstractDivergence:
    """Return the divergence for a model that is still being trained, for which a distilled one would be stale after a step.

    It is exact in up to sixteen dimensions, or in up to `probes` dimensions if that is more. In more dimensions it is
    Hutchinson's estimate, which leaves gradients unbiased if every step has a new key (Grathwohl et al. 2019, arXiv 1810.01367).
    """
    return ExactDivergence() if dim <= max(MAX_EXACT_DIMENSION, probes) else HutchinsonDivergence(key, probes)


def _quadratic(tangent: Callable[[State], State], vectors: Float[Array, "count dim"]) -> Scalar:
    r"""Sum of $v \cdot Jv$ over the rows $v$ of `vectors`."""
    return jnp.sum(vectors * jax.vmap(tangent)(vectors))


def _draw(key: Key, shape: tuple[int, ...], dtype: jnp.dtype, distribution: Probes) -> Array:
    return jr.rademacher(key, shape, dtype) if distribution == "rademacher" else jr.normal(key, shape, dtype)
