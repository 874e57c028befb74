r"""Probability flows: ODEs that carry a Gaussian to the data.

A probability flow is the ODE $dy/ds = F(s, y, c)$ in whitened coordinates, from $N(0, I)$ at the first of its times to
the data at the last. Divergences, solvers and distributions only use `AbstractProbabilityFlow`. Code that needs a Gaussian
probability path, for example for a score, uses `AbstractGaussianFlow`.
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
from .encoding import Encoding
from .networks import AbstractNetwork
from .paths import AbstractPath

Prediction = Literal["velocity", "noise", "data", "score"]
"""Quantities that a network on a Gaussian path can predict."""
ANGLE_CUT = 0.01
"""Angle by which the path is cut short at an end where the network's prediction does not determine the velocity."""


class AbstractProbabilityFlow(eqx.Module):
    """An ODE from standard-normal noise to whitened data, for ONE event and ONE context.

    `scaling` maps events to whitened states, and `context_scaling` maps contexts to whitened contexts. Everything else uses
    whitened coordinates and the model's own time. `reach` is the radius beyond which the velocity fades; it is infinite
    for a velocity that does not fade.
    """

    network: eqx.AbstractVar[Any]
    scaling: eqx.AbstractVar[Scaling]
    context_scaling: eqx.AbstractVar[Scaling | Encoding]
    reach: eqx.AbstractVar[Scalar]

    @abstractmethod
    def network_velocity(self, time: Scalar, state: State, context: Context) -> tuple[State, Hidden | None]:
        """The network's part of the velocity, shape `(dim,)`, and its hidden features, or None if it returns none.

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
        """Scale of the errors of the velocity at a time; it exceeds 1 where the network determines the velocity poorly."""

    @abstractmethod
    def times(self, steps: int) -> Times:
        """Endpoints of `steps` steps from noise to data, shape `(steps + 1,)`."""

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
    r"""A probability flow on the Gaussian path $y_\phi = \sin\phi\,x_1 + \cos\phi\,e$, whose time is $\phi \in [0, \pi/2]$.

    On the path, the velocity, the score and the posterior means of data and noise determine each other:

    $$\hat x = \sin\phi\,y + \cos\phi\,F, \quad \hat e = \cos\phi\,y - \sin\phi\,F, \quad
    \nabla\log p_\phi(y) = -\hat e/\cos\phi .$$

    `follows_path` is False for a model whose weights were trained on its likelihood. Such a model solves the same ODE, but its
    states no longer follow the path, so `score`, `noise` and `denoised` raise an error.
    """

    follows_path: bool = eqx.field(static=True, default=True, kw_only=True)

    @abstractmethod
    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Angle at path time t in [0, 1]; training draws t uniformly."""

    def denoised(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Mean of the data given the state, $\hat x = \mathbb{E}[x_1 \mid y_\phi = y]$, shape `(dim,)`."""
        self._check_path("denoised")
        return jnp.sin(angle) * state + jnp.cos(angle) * self.velocity(angle, state, context)

    def noise(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Mean of the noise given the state, $\hat e = \mathbb{E}[e \mid y_\phi = y]$, shape `(dim,)`."""
        self._check_path("noise")
        return jnp.cos(angle) * state - jnp.sin(angle) * self.velocity(angle, state, context)

    def score(self, angle: Scalar, state: State, context: Context) -> State:
        r"""Gradient of $\log p_\phi$ at the state, shape `(dim,)`; the velocity does not determine it at $\phi = \pi/2$."""
        return -self.noise(angle, state, context) / jnp.cos(angle)

    def _check_path(self, method: str) -> None:
        if not self.follows_path:
            raise ValueError(
                f"{type(self).__name__}.{method} expected a model that follows its Gaussian path; got one whose weights were "
                "trained on the likelihood. Fix: density, report = fd.fit_flow(key, data); model = density.model"
            )


@savable
class GaussianFlow(AbstractGaussianFlow):
    r"""A network on a Gaussian path that predicts velocity, noise, data or score, for flow matching and diffusion.

    The network's output $n$ is added to the prediction of the reference, so a network of zeros gives the reference.
    The output fades beyond the reach of the data: $n = m\,f(\phi, m y, c)$ with the network $f$ and the factor
    $m(|y|) \in (0, 1]$ of the radial squash $y \to m y$. The velocity $F$ is therefore bounded and Lipschitz, and far from the
    data the log density differs from that of the fitted Gaussian by a bounded amount. With the fitted Gaussian as the
    reference, the four predictions are

    $$F = n, \qquad \hat e = \cos\phi\,y + n, \qquad \hat x = \sin\phi\,y + n, \qquad
    \cos\phi\,\nabla\log p_\phi = -\cos\phi\,y + n .$$

    The velocity is $F = \beta n$ with $\beta = 1$, $-1/\sin\phi$, $1/\cos\phi$ and $1/\sin\phi$ respectively. The noise and the
    score do not determine the velocity at $\phi = 0$, and the data do not determine it at $\phi = \pi/2$, so the path is cut
    short there by an angle of 0.01. With "noise" or "score", the flow starts at that angle, and the density there is treated as
    standard normal. With "data", the flow stops at the density of the data with added noise of a hundredth of their standard
    deviation.

    Args:
        network: the vector field $f$.
        path: the path, which sets the angles of training and of the solver's steps.
        scaling: map from events to whitened states.
        context_scaling: map from contexts to whitened contexts, or to the outputs of encoders.
        reach: radius of the data in whitened units, a scalar.
        prediction: "velocity", "noise", "data" or "score".
        reference: the density that a network of zeros gives; None is the fitted Gaussian.
        context_reach: radius of the contexts in whitened units, a scalar; a context beyond it is pulled back to it along its
            ray. None means no bound.

    Raises:
        TypeError: if `network` is not an `AbstractNetwork` or `path` is not an `AbstractPath`.
        ValueError: if `prediction` is unknown.

    Examples:
        >>> model, state, no_context = density.model, jnp.zeros(2), jnp.zeros(0)
        >>> model.velocity(0.5, state, no_context)
        >>> model.score(0.5, state, no_context)
    """

    network: AbstractNetwork
    path: AbstractPath
    scaling: Scaling
    context_scaling: Scaling | Encoding
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
        # The score grows like 1 / cos near the data, so the network predicts the cosine times the score.
        return gain / jnp.cos(angle) if self.prediction == "score" else gain

    def angle(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.clip(self.path.angle(t), *self._ends)

    def times(self, steps: int) -> Times:
        first, last = self._ends
        return last - (last - first) * self.path.angle_left(steps)

    @property
    def _ends(self) -> tuple[float, float]:
        """First and last angle."""
        first = ANGLE_CUT if self.prediction in ("noise", "score") else 0.0
        return first, 0.5 * math.pi - (ANGLE_CUT if self.prediction == "data" else 0.0)


Model = TypeVar("Model", bound=AbstractProbabilityFlow)
GaussianModel = TypeVar("GaussianModel", bound=AbstractGaussianFlow)


def with_network(model: Model, network: Any) -> Model:
    """Return a copy of a model with another network."""
    return eqx.tree_at(lambda m: m.network, model, network)


def with_reference(model: GaussianFlow, reference: GaussianMixture | ConditionalMixture | None) -> GaussianFlow:
    """Return a copy of a model with another reference."""
    return eqx.tree_at(lambda m: m.reference, model, reference, is_leaf=lambda leaf: leaf is None)


def follows_path(model: AbstractProbabilityFlow) -> TypeGuard[AbstractGaussianFlow]:
    """Return whether the states of a model follow a Gaussian path, so that it has a score."""
    return isinstance(model, AbstractGaussianFlow) and model.follows_path


def off_path(model: Model) -> Model:
    """Mark a model as no longer following its Gaussian path, after its weights were trained on the likelihood."""
    if not follows_path(model):
        return model
    # `dataclasses.replace` calls `__init__`, which may have another signature in a subclass.
    copy = object.__new__(type(model))
    for field in dataclasses.fields(model):
        object.__setattr__(copy, field.name, getattr(model, field.name))
    object.__setattr__(copy, "follows_path", False)
    return copy


def velocity_coefficients(prediction: Prediction, angle: Scalar) -> tuple[Scalar, Scalar]:
    r"""Coefficients $\alpha$ and $\beta$ of the velocity $F = \alpha y + \beta O$, where $O$ is the network's prediction.

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
    """Zero velocity and zero divergence, for a model without a mixture as its reference."""
    return jnp.zeros_like(state), jnp.zeros_like(state, shape=())


def scale_of_gain(gain: Scalar) -> Scalar:
    """Velocity scale of a model whose velocity is `gain` times the network's output: a fifth of the gain, but at least 1."""
    return jnp.maximum(1.0, 0.2 * jnp.abs(gain))


def standard_normal_log_prob(noise: State) -> Scalar:
    """Log density of N(0, I) in nats, for a vector of shape `(dim,)`."""
    return -0.5 * jnp.sum(jnp.square(noise)) - 0.5 * noise.size * jnp.log(2.0 * jnp.pi)
