r"""Training objectives of a divergence head.

All three objectives are minimized by $g = \nabla\cdot F$, where $F$ is the network's contribution to the velocity, divided by the
velocity scale. All use kernel draws $y = c + h\eta$ (`flowdensity.divergence.kernel`). They differ in the quantities that they
need and in their variance.
"""

from abc import abstractmethod
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp

from .._checks import check_choice, check_kind, check_number
from .._typing import Key, Scalar
from ..models.flows import AbstractGaussianFlow, AbstractProbabilityFlow, follows_path
from .centers import AbstractCenters
from .kernel import Kernel, MeanJacobian, frame_size, stein_terms
from .stein import DivergenceHead, seen_field

Source = Literal["both", "data", "model"]


class AbstractObjective(eqx.Module):
    """Loss of a divergence head over kernel draws.

    `source` says where the centers of the kernels come from: the data, samples of the model, or both.
    """

    source: eqx.AbstractVar[Source]

    @abstractmethod
    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        """Draw kernels for the loss, with a leading axis.

        The number of draws is `draws`, rounded up to a multiple of the frame size (directions per center).
        """

    @abstractmethod
    def loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
    ) -> Scalar:
        """Loss of one frame of draws, up to an additive constant.

        Args:
            head: the divergence head that is trained.
            model: the frozen model.
            control: the mean Jacobian, used as a control variate.
            kernel: one frame of draws.

        Returns:
            Scalar, squared nats per squared unit of the model's time.
        """

    def mean_loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernels: Kernel
    ) -> Scalar:
        """Mean of `loss` over kernels with a leading axis, divided by the square of the head's scale."""
        losses = jax.vmap(lambda kernel: self.loss(head, model, control, kernel))(kernels)
        return jnp.mean(losses) / jnp.square(jax.lax.stop_gradient(head.scale))


class LangevinStein(AbstractObjective):
    r"""The Langevin-Stein loss in its kernel form, the default: $\mathbb{E}[g^2 - 2gT - 2\,r\cdot\nabla g]$.

    Here $g$ is the head, $r = F(c) - F(y)$ and $T = -r\cdot\eta/h$ at a point $y = c + h\eta$ of the kernel around a center $c$.
    The velocity $F$ is evaluated but never differentiated for its divergence. No score is needed, and centers may be anywhere
    (Jagwani et al. 2026, arXiv 2605.16486, for the plain form; "How the divergence is learned" for this form).

    Args:
        rho: kernel width, as a fraction of the noise on the path or of the spread of trajectories, in (0, 1]. At 1,
            points are drawn as on the path itself, around the scaled data.
        tails: fraction of centers that are moved outwards beyond the data, in [0, 1].
        source: where centers come from: the "data", samples of the "model", or "both".

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> objective = fd.objectives.LangevinStein(tails=0.3)
        >>> divergence, report = fd.fit_divergence(key, density.model, data, objective=objective)
    """

    rho: float = eqx.field(static=True, default=0.1)
    tails: float = eqx.field(static=True, default=0.15)
    source: Source = eqx.field(static=True, default="both")

    def __check_init__(self) -> None:
        check_number("LangevinStein", "rho", self.rho, 0.0, 1.0, fix=0.1, ends="high")
        _check("LangevinStein", self.source, self.tails)

    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        return _draw(key, centers, draws, self.rho, self.tails, frame_size(centers.dim))

    def loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
    ) -> Scalar:
        terms = stein_terms(head, model, control, kernel)
        return jnp.mean(jnp.square(terms.value) - 2.0 * terms.value * terms.target - 2.0 * terms.slope)


class ScoreStein(AbstractObjective):
    r"""The Langevin-Stein loss in its plain form, with an explicit score: $\mathbb{E}[g^2 + 2g\,s\cdot F + 2\,F\cdot\nabla g]$.

    This is the loss of the paper (Jagwani et al. 2026, arXiv 2605.16486). It uses the score of the model, so the model must
    follow a Gaussian probability path. All points are on that path, since no score is known farther out.

    Args:
        source: where centers come from: the "data", samples of the "model", or "both".

    Raises:
        ValueError: if `source` is unknown.

    Examples:
        >>> objective = fd.objectives.ScoreStein()
        >>> divergence, report = fd.fit_divergence(key, density.model, data, objective=objective)
    """

    source: Source = eqx.field(static=True, default="both")

    def __check_init__(self) -> None:
        _check("ScoreStein", self.source, 0.0)

    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        # The center itself is the point of evaluation, so the noise is not used.
        return _draw(key, centers, draws, 0.0, 0.0, 1)

    def loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
    ) -> Scalar:
        scored = _scored(model)
        time, point, _, _, context = kernel
        score = scored.score(time, point, context)
        (field, seen), tangent = jax.linearize(lambda y: seen_field(model, time, y, context), point)
        _, seen_tangent = tangent(field)
        value, slope = jax.jvp(lambda y, s: head(time, y, s), (point, seen), (field, seen_tangent))
        return jnp.square(value) + 2.0 * value * jnp.dot(score, field) + 2.0 * slope


class HutchinsonRegression(AbstractObjective):
    r"""Least squares on Hutchinson's estimate, $\mathbb{E}[(g - \eta^\top (\partial F/\partial y)\,\eta)^2]$.

    This is the limit of `LangevinStein` for narrow kernels, with a derivative of the network in place of a difference.

    Args:
        tails: fraction of points that are moved outwards beyond the data, in [0, 1].
        source: where centers come from: the "data", samples of the "model", or "both".

    Raises:
        ValueError: if an argument is out of range.

    Examples:
        >>> objective = fd.objectives.HutchinsonRegression()
        >>> divergence, report = fd.fit_divergence(key, density.model, data, objective=objective)
    """

    tails: float = eqx.field(static=True, default=0.15)
    source: Source = eqx.field(static=True, default="both")

    def __check_init__(self) -> None:
        _check("HutchinsonRegression", self.source, self.tails)

    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        # The center itself is the point of evaluation, and the noise vectors are the probes.
        return _draw(key, centers, draws, 0.0, self.tails, frame_size(centers.dim))

    def loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
    ) -> Scalar:
        time, point, probes, _, context = kernel
        (_, seen), tangent = jax.linearize(lambda y: seen_field(model, time, y, context), point)
        estimates = jax.vmap(lambda probe: jnp.dot(probe, tangent(probe)[0]))(probes)
        return jnp.mean(jnp.square(head(time, point, seen) - estimates))


def _draw(key: Key, centers: AbstractCenters, draws: int, rho: float, tails: float, directions: int) -> Kernel:
    # As arrays, rho and tails are not compile-time constants.
    rho_tails = {"rho": jnp.asarray(rho, float), "tails": jnp.asarray(tails, float)}
    return centers.draw(key, -(-draws // directions), **rho_tails, directions=directions)


def _check(name: str, source: str, tails: float) -> None:
    check_number(name, "tails", tails, 0.0, 1.0, fix=0.15, ends="both")
    check_choice(name, "source", source, Source, fix="both")


def check_objective(caller: str, objective: object, model: AbstractProbabilityFlow) -> None:
    """Raise a TypeError unless a head for `model` can be trained on `objective`."""
    check_kind(caller, "objective", objective, AbstractObjective, "objective = fd.objectives.LangevinStein()")
    if isinstance(objective, ScoreStein):
        _scored(model)


def _scored(model: AbstractProbabilityFlow) -> AbstractGaussianFlow:
    if not follows_path(model):
        raise TypeError(
            f"ScoreStein expected a model that follows a Gaussian path, where its score is known; got {type(model).__name__}"
            f"{', trained on its likelihood' if isinstance(model, AbstractGaussianFlow) else ''}. "
            "Fix: objective = fd.objectives.LangevinStein()"
        )
    return model
