"""Divergences estimated with random probes."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import Context, Key, Scalar, State
from ..models.flows import AbstractProbabilityFlow
from .interface import AbstractDivergence


class HutchinsonDivergence(AbstractDivergence):
    r"""$\frac1k \sum_i v_i^\top (\partial F/\partial y)\, v_i$ with Rademacher probes $v_i$ (Hutchinson 1989).

    Unbiased for the divergence, with a standard deviation that grows with the off-diagonal Jacobian. The probes
    follow from the key alone: the same for every event and every time, so `log_prob` is a deterministic, smooth
    function, and only another key gives another error.

    Args:
        key: JAX PRNG key of the probes.
        probes: number of probes.
    """

    key: Key
    probes: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.probes < 1:
            raise ValueError(
                f"HutchinsonDivergence expected `probes` of at least 1; got {self.probes}. "
                "Fix: HutchinsonDivergence(key, probes=1)"
            )

    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        probes = jr.rademacher(self.key, (self.probes, state.size), state.dtype)
        velocity, tangent = jax.linearize(lambda y: model.velocity(time, y, context), state)
        return velocity, jnp.mean(jnp.sum(probes * jax.vmap(tangent)(probes), axis=1))
