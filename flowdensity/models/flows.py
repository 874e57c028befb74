r"""Probability flows: the ODEs that carry a Gaussian to the data.

A probability flow is $dy/ds = F(s, y, c)$ in whitened coordinates, from $N(0, I)$ at the first of its times to
the data at the last. Divergences, solvers and distributions only use `AbstractProbabilityFlow`; what needs a Gaussian
probability path to the data uses `AbstractGaussianFlow`.
"""

import dataclasses
import math
from abc import abstractmethod
from typing import Any, Literal, TypeGuard, TypeVar, final

import equinox as eqx
import jax.numpy as jnp

from .._checks import check_choice, check_kind
from .._registry import savable
from .._squash import context_seen, squash
from .._typing import Array, Context, Float, Hidden, Scalar, State, Times
from ..data.scaling import Scaling
from ..references.conditional import ConditionalMixture
from ..references.mixture import GaussianMixture
from .networks import AbstractNetwork
from .paths import AbstractPath

Prediction = Literal["velocity", "noise", "data", "score"]
ANGLE_CUT = 0.01
"""Angle by which the path is cut short at an end where the network's prediction does not determine the velocity."""


class AbstractProbabilityFlow(eqx.Module):
    """An ODE from standard-normal noise to whitened data, for ONE event and ONE context.

    `scaling` maps events to whitened states, `context_scaling` contexts to whitened contexts; everything else lives in
    whitened coordinates and in the model's own time. `reach` is the radius beyond which the velocity fades; it is infinite
    for a velocity that does not fade.
    """

    network: eqx.AbstractVar[Any]
    scaling: eqx.AbstractVar[Scaling]
    context_scaling: eqx.AbstractVar[Scaling]
    reach: eqx.AbstractVar[Scalar]

    @abstractmethod
    def network_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        """The network's part of the velocity, shape `(dim,)`, and its hidden features, or None if it shows none.

        Args:
            time: the model's own time.
            state: whitened state, shape `(dim,)`.
            context: whitened context, shape `(context_dim,)`.
        """

    @abstractmethod
    def reference_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        """The reference's part of the velocity, shape `(dim,)`, and its divergence, both in closed form.

        A model without a reference returns `zero_velocity(state)`.
        """

    @abstractmethod
    def velocity_scale(self, time: Scalar) -> Scalar | float:
        """Scale of errors of the velocity at a time; it exceeds one where the network determines the velocity poorly."""

    @abstractmethod
    def times(self, steps: int) -> Times:
        """Ends of `steps` steps from noise to data, shape `(steps + 1,)`."""

    @final
    def velocity(self, time: Scalar, state: State, context: Context) -> State:
        """Velocity dy/ds, shape `(dim,)`: the network's part plus the reference's."""
        return self.network_velocity(time, state, context)[0] + self.reference_velocity(time, state, context)[0]

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


class AbstractGaussianFlow(AbstractProbabilityFlow):
    r"""A probability flow along the Gaussian path $y_\phi = \sin\phi\,x_1 + \cos\phi\,e$, timed by $\phi \in [0, \pi/2]$.

    On the path, the velocity, the score and the posterior means of data and noise determine each other,

    $$\hat x = \sin\phi\,y + \cos\phi\,F, \quad \hat e = \cos\phi\,y - \sin\phi\,F, \quad
    \nabla\log p_\phi(y) = -\hat e/\cos\phi .$$

    `follows_path` is False for a model whose weights were trained on its likelihood: it solves the same ODE, but its states no
    longer follow the path, and it has no score, no noise and no denoiser.
    """

    follows_path: bool = eqx.field(static=True, default=True, kw_only=True)

    @abstractmethod
    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Angle at path time t in [0, 1]. Training draws t uniformly, and solvers step at equal steps of t."""

    def denoised(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Mean of the data given the state, $\hat x = \mathbb{E}[x_1 \mid y_\phi = y]$, shape `(dim,)`."""
        self._check_path("denoised")
        return jnp.sin(angle) * state + jnp.cos(angle) * self.velocity(angle, state, context)

    def noise(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Mean of the noise given the state, $\hat e = \mathbb{E}[e \mid y_\phi = y]$, shape `(dim,)`."""
        self._check_path("noise")
        return jnp.cos(angle) * state - jnp.sin(angle) * self.velocity(angle, state, context)

    def score(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Gradient of $\log p_\phi$ at the state, shape `(dim,)`; at $\phi = \pi/2$ it is not determined."""
        return -self.noise(angle, state, context) / jnp.cos(angle)

    def _check_path(self, method: str) -> None:
        if not self.follows_path:
            raise ValueError(
                f"{type(self).__name__}.{method} expected a model that follows its Gaussian path; got one whose weights were "
                "trained on the likelihood. Fix: density, report = fd.fit_flow(key, data); model = density.model"
            )


@savable
class GaussianFlow(AbstractGaussianFlow):
    r"""A network on a Gaussian path, which predicts velocity, noise, data or score: flow matching and diffusion in one.

    The network's output $n$ is a departure from what the reference predicts, so that a network of zeros *is* the reference.
    It fades beyond the data's reach: $n = m\,f(\phi, m y, c)$ with the network $f$ and the radial squash $y \to m y$. So $F$ is
    bounded and Lipschitz, and far from the data the log density differs from the reference's by a bounded amount. With
    the fitted Gaussian as the reference,

    $$F = n, \qquad \hat e = \cos\phi\,y + n, \qquad \hat x = \sin\phi\,y + n, \qquad
    \cos\phi\,\nabla\log p_\phi = -\cos\phi\,y + n .$$

    The velocity is $F = \beta n$ with $\beta = 1$, $-1/\sin\phi$, $1/\cos\phi$ and $1/\sin\phi$. Noise and score do not
    determine it at $\phi = 0$, nor data at $\phi = \pi/2$, and there the path is cut short by 0.01: the first two start
    from the density at that angle as if it were standard normal; the last stops at the density of the data with noise of a
    hundredth of their standard deviation.

    Args:
        network: the vector field $f$.
        path: where on the quarter circle to train and to step.
        scaling: events to whitened states.
        context_scaling: contexts to whitened contexts.
        reach: radius of the data in whitened units, a scalar.
        prediction: "velocity", "noise", "data" or "score".
        reference: the density that a network of zeros gives; None is the fitted Gaussian.
        context_reach: radius of the contexts in whitened units, a scalar; a context beyond it is moved to it. None is no
            bound.

    Raises:
        TypeError: if `network` or `path` is of another kind.
        ValueError: if `prediction` is unknown.
    """

    network: AbstractNetwork
    path: AbstractPath
    scaling: Scaling
    context_scaling: Scaling
    reach: Scalar
    prediction: Prediction = eqx.field(static=True, default="velocity")
    reference: GaussianMixture | ConditionalMixture | None = None
    context_reach: Scalar | None = None

    def __check_init__(self) -> None:
        network = f"network = fd.networks.ResidualMLP(key, {self.scaling.dim}, {self.context_scaling.dim})"
        check_kind("GaussianFlow", "network", self.network, AbstractNetwork, network)
        check_kind("GaussianFlow", "path", self.path, AbstractPath, "path = fd.paths.CondOT()")
        check_choice("GaussianFlow", "prediction", self.prediction, Prediction, fix="velocity")

    def network_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden]:
        near, factor = squash(state, self.reach)
        output, hidden = self.network(time, near, context_seen(context, self.context_reach))
        return self._gain(time) * (factor * output), hidden

    def reference_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Scalar]:
        if self.reference is None:
            return zero_velocity(state)
        return self.reference.given(context_seen(context, self.context_reach)).faded(time, state, self.reach)

    def velocity_scale(self, time: Scalar) -> Scalar:
        return scale_of_gain(self._gain(time))

    def _gain(self, angle: Scalar) -> Scalar:
        gain = velocity_coefficients(self.prediction, angle)[1]
        # The score grows as 1/cos at the data: the network predicts the cosine times the score.
        return gain / jnp.cos(angle) if self.prediction == "score" else gain

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.clip(self.path.angle(t), *self._ends)

    def times(self, steps: int) -> Times:
        # Rescaled rather than clipped: clipping could leave steps of length zero.
        first, last = self._ends
        return first + (last - first) / (0.5 * math.pi) * over_quarter_circle(self.path.grid(steps))

    @property
    def _ends(self) -> tuple[float, float]:
        """First and last angle."""
        first = ANGLE_CUT if self.prediction in ("noise", "score") else 0.0
        return first, 0.5 * math.pi - (ANGLE_CUT if self.prediction == "data" else 0.0)


Model = TypeVar("Model", bound=AbstractProbabilityFlow)
GaussianModel = TypeVar("GaussianModel", bound=AbstractGaussianFlow)


def with_network(model: Model, network: Any) -> Model:
    """The same model with another network."""
    return eqx.tree_at(lambda m: m.network, model, network)


def with_reference(model: GaussianFlow, reference: GaussianMixture | ConditionalMixture | None) -> GaussianFlow:
    """The same model with another reference."""
    return eqx.tree_at(lambda m: m.reference, model, reference, is_leaf=lambda leaf: leaf is None)


def follows_path(model: AbstractProbabilityFlow) -> TypeGuard[AbstractGaussianFlow]:
    """Whether the states of a model follow a Gaussian path, so that it has a score."""
    return isinstance(model, AbstractGaussianFlow) and model.follows_path


def off_path(model: Model) -> Model:
    """The same ODE without the promise that its states follow a Gaussian path, for weights trained on the likelihood."""
    if not follows_path(model):
        return model
    # A subclass may have an `__init__` of its own, so `dataclasses.replace` would not do.
    copy = object.__new__(type(model))
    for field in dataclasses.fields(model):
        object.__setattr__(copy, field.name, getattr(model, field.name))
    object.__setattr__(copy, "follows_path", False)
    return copy


def velocity_coefficients(prediction: Prediction, angle: Scalar) -> tuple[Scalar, Scalar]:
    r"""Coefficients $\alpha$ and $\beta$ of $F = \alpha y + \beta O$, where $O$ is what a network predicts.

    | $O$ | $\alpha$ | $\beta$ |
    |---|---|---|
    | velocity $F$ | 0 | 1 |
    | data $\hat x$ | $-\tan\phi$ | $1/\cos\phi$ |
    | noise $\hat e$ | $\cot\phi$ | $-1/\sin\phi$ |
    | score $\nabla\log p_\phi$ | $\cot\phi$ | $\cot\phi$ |
    """
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    match prediction:
        case "velocity":
            return jnp.zeros(()), jnp.ones(())
        case "data":
            return -sine / cosine, 1.0 / cosine
        case "noise":
            return cosine / sine, -1.0 / sine
        case "score":
            return cosine / sine, cosine / sine


def zero_velocity(state: State) -> tuple[State, Scalar]:
    """The reference velocity of a model without a reference, and its divergence."""
    return jnp.zeros_like(state), jnp.zeros_like(state, shape=())


def scale_of_gain(gain: Scalar) -> Scalar:
    """Velocity scale of a model whose velocity is `gain` times a network's output: one, until a fifth of the gain exceeds it."""
    return jnp.maximum(1.0, 0.2 * jnp.abs(gain))


def over_quarter_circle(grid: Times) -> Times:
    r"""The same steps, from $\phi = 0$ to $\phi = \pi/2$ wherever the path itself starts and stops."""
    return grid.at[0].set(0.0).at[-1].set(0.5 * jnp.pi)


def standard_normal_log_prob(noise: State) -> Scalar:
    """Log density of N(0, I) in nats, for a vector of shape `(dim,)`."""
    return -0.5 * jnp.sum(jnp.square(noise)) - 0.5 * noise.size * jnp.log(2.0 * jnp.pi)
