"""Exact divergence: the trace of the Jacobian."""

import jax
import jax.numpy as jnp

from .._registry import savable
from .._typing import Context, Scalar, State
from ..models.flows import AbstractProbabilityFlow
from .interface import AbstractDivergence


@savable
class ExactDivergence(AbstractDivergence):
    r"""Exact divergence $\nabla\cdot F = \operatorname{tr}\,\partial F/\partial y$, with O(dim) network passes per evaluation.

    The network is linearized once, and its tangent map is applied to all basis vectors in one batch. This is the fastest way to
    a dense Jacobian.

    Examples:
        >>> exact = density.with_divergence(fd.ExactDivergence())
        >>> exact.log_prob(data[:5])
    """

    is_exact = True

    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        velocity, tangent = jax.linearize(lambda y: model.velocity(time, y, context), state)
        columns = jax.vmap(tangent)(jnp.eye(state.size, dtype=state.dtype))
        return velocity, jnp.trace(columns)
