"""Interface of all divergences."""

from abc import abstractmethod
from typing import ClassVar

import equinox as eqx

from .._display import shown
from .._typing import Context, Scalar, State
from ..models.flows import AbstractProbabilityFlow


class AbstractDivergence(eqx.Module):
    """Computes a velocity and its divergence.

    Subclasses define `__call__` for a single state and a single context. If applicable, they set the two class attributes.
    """

    is_exact: ClassVar[bool] = False
    """Whether it is the trace of the Jacobian for every model."""
    is_learned: ClassVar[bool] = False
    """Whether it was learned for one frozen model and is wrong for any other. Its network is then its attribute `head`."""

    @abstractmethod
    def __call__(
        self, model: AbstractProbabilityFlow, time: Scalar, state: State, context: Context
    ) -> tuple[State, Scalar]:
        """Compute the velocity, shape `(dim,)`, and its divergence, a scalar in nats per unit of the model's time.

        Args:
            model: the probability flow.
            time: the model's own time.
            state: whitened state, shape `(dim,)`.
            context: whitened context, shape `(context_dim,)`.
        """

    def __repr__(self) -> str:
        return shown(self)
