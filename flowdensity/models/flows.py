r"""What is learned: probability flows, ODEs that carry a Gaussian to the data.

A probability flow is $dy/ds = F(s, y, c)$ in whitened coordinates, from $N(0, I)$ at the first of its times to
the whitened data at the last. Everything downstream (divergences, solving, distributions) knows it by
`AbstractProbabilityFlow` alone.
"""

from abc import abstractmethod

import equinox as eqx

from .._typing import Context, Hidden, Scalar, State, Times
from ..data.scaling import Scaling
from .networks import AbstractNetwork, squash
from .paths import AbstractPath


class AbstractProbabilityFlow(eqx.Module):
    """An ODE from standard-normal noise to whitened data, for ONE event and ONE context.

    `scaling` maps events to whitened states, `context_scaling` contexts to whitened contexts; `features`
    and `times` live in whitened coordinates and the model's own time.
    """

    scaling: eqx.AbstractVar[Scaling]
    context_scaling: eqx.AbstractVar[Scaling]

    @abstractmethod
    def features(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        """Velocity, shape `(dim,)`, and the hidden features it was read from, or None.

        Args:
            time: the model's own time.
            state: whitened state, shape `(dim,)`.
            context: whitened context, shape `(context_dim,)`.
        """

    @abstractmethod
    def times(self, steps: int) -> Times:
        """Ends of `steps` steps from noise to data, shape `(steps + 1,)`."""

    def velocity(self, time: Scalar, state: State, context: Context) -> State:
        """Velocity dy/ds, shape `(dim,)`."""
        return self.features(time, state, context)[0]

    @property
    def dim(self) -> int:
        """Dimension of the whitened state."""
        return self.scaling.dim

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one event in the user's units."""
        return self.scaling.event_shape

    @property
    def context_shape(self) -> tuple[int, ...]:
        """Shape of one context in the user's units; `(0,)` means none."""
        return self.context_scaling.event_shape


class Flow(AbstractProbabilityFlow):
    r"""A flow-matching model on the circle: $dy/d\phi = F(\phi, y, c)$, time is the angle $\phi \in [0, \pi/2]$.

    $F = m\,f(\phi, \sigma(y), c)$, where $f$ is the network and $\sigma(y) = m y$ the radial squash beyond the
    data's reach. So $F$ is bounded and Lipschitz and fades far from the data, where the log density differs from that
    of the fitted Gaussian, which is the flow with $F = 0$, by a bounded amount.

    Args:
        network: the vector field $f$.
        path: where along the circle to train and step.
        scaling: events to whitened states.
        context_scaling: contexts to whitened contexts.
        reach: radius of the data in whitened units, a scalar.
    """

    network: AbstractNetwork
    path: AbstractPath
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar

    def features(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        near, factor = squash(state, self.reach)
        output, hidden = self.network(time, near, context)
        return factor * output, hidden

    def times(self, steps: int) -> Times:
        return self.path.grid(steps)
