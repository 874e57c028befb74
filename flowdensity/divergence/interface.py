"""The one interface to divergences."""

from abc import abstractmethod

import equinox as eqx

from .._typing import Context, Scalar, State
from ..models.flows import AbstractProbabilityFlow


class AbstractDivergence(eqx.Module):
    """How the divergence of a model's velocity is had, together with the velocity itself."""

    @abstractmethod
    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        """Velocity, shape `(dim,)`, and its divergence, a scalar in nats per unit of the model's time.

        Args:
            model: the probability flow.
            time: the model's own time.
            state: whitened state, shape `(dim,)`.
            context: whitened context, shape `(context_dim,)`.
        """
