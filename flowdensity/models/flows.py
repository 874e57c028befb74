r"""What is learned: probability flows, ODEs that carry a Gaussian to the data.

A probability flow is $dy/ds = F(s, y, c)$ in whitened coordinates, from $N(0, I)$ at the first of its times to
the data at the last. Everything downstream (divergences, solving, distributions) knows it by
`AbstractProbabilityFlow` alone; what needs a Gaussian path to the data knows it by `AbstractCircle`.
"""

import math
from abc import abstractmethod
from typing import Any, Literal, TypeVar, final

import equinox as eqx
import jax.numpy as jnp

from .._checks import check_choice, check_kind
from .._typing import Array, Context, Float, Hidden, Scalar, State, Times
from ..data.scaling import Scaling
from .mixture import GaussianMixture
from .networks import AbstractNetwork, context_seen, squash
from .paths import AbstractPath

Prediction = Literal["velocity", "noise", "data", "score"]
CUT = 0.01
"""Angle by which a quarter circle is cut short at an end where what a network predicts does not determine the velocity."""


class AbstractProbabilityFlow(eqx.Module):
    """An ODE from standard-normal noise to whitened data, for ONE event and ONE context.

    `scaling` maps events to whitened states, `context_scaling` contexts to whitened contexts; all else lives in whitened
    coordinates and the model's own time. `reach` is the radius beyond which the velocity fades, infinite if it does not.
    """

    network: eqx.AbstractVar[Any]
    scaling: eqx.AbstractVar[Scaling]
    context_scaling: eqx.AbstractVar[Scaling]
    reach: eqx.AbstractVar[Scalar]

    @abstractmethod
    def features(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        """What the network contributes to the velocity, shape `(dim,)`, and the hidden features it was read from, or None.

        Args:
            time: the model's own time.
            state: whitened state, shape `(dim,)`.
            context: whitened context, shape `(context_dim,)`.
        """

    @abstractmethod
    def unit(self, time: Scalar) -> Scalar | float:
        """Unit in which errors of the velocity are counted at a time: above one where the network does not determine it well."""

    @abstractmethod
    def times(self, steps: int) -> Times:
        """Ends of `steps` steps from noise to data, shape `(steps + 1,)`."""

    def known(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        """The rest of the velocity, shape `(dim,)`, and its divergence, both in closed form; zero where a model has no such."""
        return started(None, time, state, self.reach)

    @final
    def velocity(self, time: Scalar, state: State, context: Context) -> State:
        """Velocity dy/ds, shape `(dim,)`: the sum of both."""
        return self.features(time, state, context)[0] + self.known(time, state, context)[0]

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


class AbstractCircle(AbstractProbabilityFlow):
    r"""A probability flow along $y_\phi = \sin\phi\,x_1 + \cos\phi\,e$: its time is the angle $\phi \in [0, \pi/2]$.

    There the velocity, the score and the best guesses of data and noise determine each other,

    $$\hat x = \sin\phi\,y + \cos\phi\,F, \quad \hat e = \cos\phi\,y - \sin\phi\,F, \quad
    \nabla\log p_\phi(y) = -\hat e/\cos\phi .$$
    """

    @abstractmethod
    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Angle at path time t in [0, 1]: where to train, and in equal steps of t where to step."""

    def denoised(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Mean of the data given the state, $\hat x = \mathbb{E}[x_1 \mid y_\phi = y]$, shape `(dim,)`."""
        return jnp.sin(angle) * state + jnp.cos(angle) * self.velocity(angle, state, context)

    def noise(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Mean of the noise given the state, $\hat e = \mathbb{E}[e \mid y_\phi = y]$, shape `(dim,)`."""
        return jnp.cos(angle) * state - jnp.sin(angle) * self.velocity(angle, state, context)

    def score(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Gradient of $\log p_\phi$ at the state, shape `(dim,)`; at $\phi = \pi/2$ it is not determined."""
        return -self.noise(angle, state, context) / jnp.cos(angle)


class Flow(AbstractCircle):
    r"""A flow-matching model on the circle: the network is the velocity, or its departure from that of the start.

    $F = m\,f(\phi, \sigma(y), c)$, where $f$ is the network, to which the start's velocity is added, and $\sigma(y) = m y$ the
    radial squash beyond the data's reach. So $F$ is bounded and Lipschitz and fades far from the data, where the log density
    differs from that of the fitted Gaussian, which is the flow with $F = 0$, by a bounded amount.

    Args:
        network: the vector field $f$.
        path: where along the circle to train and step.
        scaling: events to whitened states.
        context_scaling: contexts to whitened contexts.
        reach: radius of the data in whitened units, a scalar.
        start: what it is with a network of zeros; None is the fitted Gaussian.
        context_reach: radius of the contexts in whitened units, a scalar: those beyond are seen as at it. None is no bound.

    Raises:
        TypeError: if `network` or `path` is of another kind.
    """

    network: AbstractNetwork
    path: AbstractPath
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar
    start: GaussianMixture | None = None
    context_reach: Scalar | None = None

    def __check_init__(self) -> None:
        _check_parts("Flow", self)

    def features(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        return faded(self.network, time, state, context_seen(context, self.context_reach), self.reach)

    def known(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        return started(self.start, time, state, self.reach)

    def unit(self, time: Scalar) -> float:
        return 1.0

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return self.path.angle(t)

    def times(self, steps: int) -> Times:
        return whole_circle(self.path.grid(steps))


class Diffusion(AbstractCircle):
    r"""A diffusion model on the circle: the network predicts noise, data, score or velocity.

    What it predicts is the departure from what it would be for the start, so that a network of zeros *is* the start, as in
    `Flow`: with $n$ the network, faded beyond the data's reach, and the fitted Gaussian for a start,

    $$F = n, \qquad \hat e = \cos\phi\,y + n, \qquad \hat x = \sin\phi\,y + n, \qquad
    \cos\phi\,\nabla\log p_\phi = -\cos\phi\,y + n .$$

    The velocity is $F = \beta n$ with $\beta = 1$, $-1/\sin\phi$, $1/\cos\phi$ and $1/\sin\phi$. Noise and score do not
    determine it at $\phi = 0$, nor data at $\phi = \pi/2$, and there the circle is cut short by 0.01: the first two start
    from the law at that angle as if it were standard normal, the last stops at the law of the data with noise of a hundredth
    of their standard deviation.

    Args:
        network: what predicts.
        path: where along the circle to train and step.
        prediction: "velocity", "noise", "data" or "score".
        scaling: events to whitened states.
        context_scaling: contexts to whitened contexts.
        reach: radius of the data in whitened units, a scalar.
        start: what it is with a network of zeros; None is the fitted Gaussian.
        context_reach: radius of the contexts in whitened units, a scalar: those beyond are seen as at it. None is no bound.

    Raises:
        TypeError: if `network` or `path` is of another kind.
        ValueError: if `prediction` is unknown.
    """

    network: AbstractNetwork
    path: AbstractPath
    prediction: Prediction = eqx.field(static=True)
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar
    start: GaussianMixture | None = None
    context_reach: Scalar | None = None

    def __check_init__(self) -> None:
        _check_parts("Diffusion", self)
        check_choice("Diffusion", "prediction", self.prediction, Prediction, fix="velocity")

    def features(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        output, hidden = faded(self.network, time, state, context_seen(context, self.context_reach), self.reach)
        return self._gain(time) * output, hidden

    def known(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        return started(self.start, time, state, self.reach)

    def unit(self, time: Scalar) -> Scalar:
        return limited(self._gain(time))

    def _gain(self, angle: Scalar) -> Scalar:
        match self.prediction:
            case "velocity":
                return jnp.ones(())
            case "data":
                return 1.0 / jnp.cos(angle)
            case "noise":
                return -1.0 / jnp.sin(angle)
            case "score":
                return 1.0 / jnp.sin(angle)

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.clip(self.path.angle(t), *self._ends)

    def times(self, steps: int) -> Times:
        # Moved together and not clipped: a solver can make no step of no length.
        first, last = self._ends
        return first + (last - first) / (0.5 * jnp.pi) * whole_circle(self.path.grid(steps))

    @property
    def _ends(self) -> tuple[float, float]:
        """Angles at which the circle starts and stops."""
        first = CUT if self.prediction in ("noise", "score") else 0.0
        return first, 0.5 * math.pi - (CUT if self.prediction == "data" else 0.0)


class ContinuousFlow(AbstractProbabilityFlow):
    """The ODE of a model on the circle, without the promise that its states follow the Gaussian path.

    What maximum likelihood makes of a `Flow` or a `Diffusion`: a continuous normalizing flow, for which velocity, score and
    denoiser no longer determine each other.

    Args:
        circle: the model on the circle whose velocity it has.

    Raises:
        TypeError: if it is no such model.
    """

    circle: AbstractCircle

    def __init__(self, circle: AbstractCircle):
        check_kind("ContinuousFlow", "circle", circle, AbstractCircle, "circle = density.model")
        self.circle = circle

    @property
    def network(self) -> Any:
        """What predicts."""
        return self.circle.network

    @property
    def scaling(self) -> Scaling:
        """Events to whitened states."""
        return self.circle.scaling

    @property
    def context_scaling(self) -> Scaling:
        """Contexts to whitened contexts."""
        return self.circle.context_scaling

    @property
    def reach(self) -> Scalar:
        """Radius beyond which the velocity fades."""
        return self.circle.reach

    @property
    def context_reach(self) -> Scalar | None:
        """Radius beyond which contexts are seen as at it; None is no bound."""
        return getattr(self.circle, "context_reach", None)

    def features(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        return self.circle.features(time, state, context)

    def known(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        return self.circle.known(time, state, context)

    def unit(self, time: Scalar) -> Scalar | float:
        return self.circle.unit(time)

    def times(self, steps: int) -> Times:
        return self.circle.times(steps)


Model = TypeVar("Model", bound=AbstractProbabilityFlow)
Started = TypeVar("Started", bound=Flow | Diffusion)


def with_network(model: Model, network: Any) -> Model:
    """The same model with another network."""
    return eqx.tree_at(lambda m: m.network, model, network)


def with_start(model: Started, start: GaussianMixture | None) -> Started:
    """The same model with another start."""
    return eqx.tree_at(lambda m: m.start, model, start, is_leaf=lambda leaf: leaf is None)


def started(start: GaussianMixture | None, angle: Scalar, state: State, reach: Scalar) -> tuple[State, Scalar]:
    """Velocity of a start, shape `(dim,)`, and its divergence; those of the fitted Gaussian are zero."""
    if start is None:
        return jnp.zeros_like(state), jnp.zeros_like(state, shape=())
    return start.faded(angle, state, reach)


def faded(
    network: AbstractNetwork, angle: Scalar, state: State, context: Context, reach: Scalar
) -> tuple[State, Hidden]:
    """A network's output, which fades beyond `reach`, and its hidden features, which stay bounded."""
    near, factor = squash(state, reach)
    output, hidden = network(angle, near, context)
    return factor * output, hidden


def limited(gain: Scalar) -> Scalar:
    """The unit of a velocity that is `gain` times what a network predicts: one, until a fifth of the gain is more."""
    return jnp.maximum(1.0, 0.2 * jnp.abs(gain))


def whole_circle(grid: Times) -> Times:
    r"""The same steps from $\phi = 0$ to $\phi = \pi/2$, wherever the path itself starts and stops."""
    return grid.at[0].set(0.0).at[-1].set(0.5 * jnp.pi)


def standard_normal_log_prob(noise: State) -> Scalar:
    """Log density of N(0, I) in nats, for a vector of shape `(dim,)`."""
    return -0.5 * jnp.sum(jnp.square(noise)) - 0.5 * noise.size * jnp.log(2.0 * jnp.pi)


def _check_parts(caller: str, model: "Flow | Diffusion") -> None:
    network = f"network = fd.ResidualMLP(key, {model.scaling.dim}, {model.context_scaling.dim})"
    check_kind(caller, "network", model.network, AbstractNetwork, network)
    check_kind(caller, "path", model.path, AbstractPath, "path = fd.CondOT()")
