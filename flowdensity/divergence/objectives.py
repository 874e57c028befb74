r"""What a divergence head is trained on.

All three objectives are least at $g = \nabla\cdot F$, the divergence of the network's part of the velocity in its unit, and see
it through kernels
$y = c + h\eta$ (`flowdensity.divergence.kernel`). They differ in what they know and in their variance.
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
    """A loss of a divergence head over kernel draws.

    `source` is what their centers are drawn about: the data, the model's own samples, or both.
    """

    source: eqx.AbstractVar[Source]

    @abstractmethod
    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        """Kernels for the loss with a leading axis, `draws` draws in all or a little more: frames are whole."""

    @abstractmethod
    def loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
    ) -> Scalar:
        """Loss of one frame of draws, up to an additive constant.

        Args:
            head: the divergence head, which is trained.
            model: the frozen model.
            control: the mean Jacobian, a control variate.
            kernel: one frame of draws.

        Returns:
            Scalar, squared nats per squared unit of the model's time.
        """

    def mean_loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernels: Kernel
    ) -> Scalar:
        """Mean of `loss` over kernels with a leading axis, in units of the head's scale."""
        losses = jax.vmap(lambda kernel: self.loss(head, model, control, kernel))(kernels)
        return jnp.mean(losses) / jnp.square(jax.lax.stop_gradient(head.scale))


class LangevinStein(AbstractObjective):
    r"""The Langevin-Stein loss in its kernel form, the default: $\mathbb{E}[g^2 - 2gT - 2\,r\cdot\nabla g]$.

    The velocity is evaluated and never differentiated for its divergence, no score is needed, and centers may be anywhere
    (Jagwani et al. 2026, arXiv 2605.16486, for the plain form; "How it works" for this one).

    Args:
        rho: kernel width, as a fraction of the noise on the path or of the spread of trajectories, in (0, 1]; 1 is the plain
            denoising form.
        tails: fraction of centers that are moved outwards beyond the data, in [0, 1].
        source: "both", "data" or "model".

    Raises:
        ValueError: if one is out of range.
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

    The paper's (Jagwani et al. 2026, arXiv 2605.16486). The score is the model's own, so the model must follow a Gaussian
    path; points are on that path, since farther out no score is known.

    Args:
        source: "both", "data" or "model".

    Raises:
        ValueError: if it is unknown.
    """

    source: Source = eqx.field(static=True, default="both")

    def __check_init__(self) -> None:
        _check("ScoreStein", self.source, 0.0)

    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        # The center itself is the point; nothing is drawn about it.
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

    The limit of `LangevinStein` for narrow kernels, with a derivative of the network in place of its difference.

    Args:
        tails: fraction of points that are moved outwards beyond the data, in [0, 1].
        source: "both", "data" or "model".

    Raises:
        ValueError: if one is out of range.
    """

    tails: float = eqx.field(static=True, default=0.15)
    source: Source = eqx.field(static=True, default="both")

    def __check_init__(self) -> None:
        _check("HutchinsonRegression", self.source, self.tails)

    def draw(self, key: Key, centers: AbstractCenters, draws: int) -> Kernel:
        # The center itself is the point; what is drawn about it are the probes.
        return _draw(key, centers, draws, 0.0, self.tails, frame_size(centers.dim))

    def loss(
        self, head: DivergenceHead, model: AbstractProbabilityFlow, control: MeanJacobian, kernel: Kernel
    ) -> Scalar:
        time, point, probes, _, context = kernel
        (_, seen), tangent = jax.linearize(lambda y: seen_field(model, time, y, context), point)
        estimates = jax.vmap(lambda probe: jnp.dot(probe, tangent(probe)[0]))(probes)
        return jnp.mean(jnp.square(head(time, point, seen) - estimates))


def _draw(key: Key, centers: AbstractCenters, draws: int, rho: float, tails: float, directions: int) -> Kernel:
    # As arrays, rho and tails are no constants of what is compiled.
    rho_tails = {"rho": jnp.asarray(rho, float), "tails": jnp.asarray(tails, float)}
    return centers.draw(key, -(-draws // directions), **rho_tails, directions=directions)


def _check(name: str, source: str, tails: float) -> None:
    check_number(name, "tails", tails, 0.0, 1.0, fix=0.15, ends="both")
    check_choice(name, "source", source, Source, fix="both")


def check_objective(caller: str, objective: object, model: AbstractProbabilityFlow) -> None:
    """Raise a TypeError unless `objective` is one that a head for `model` can be trained on."""
    check_kind(caller, "objective", objective, AbstractObjective, "objective = fd.objectives.LangevinStein()")
    if isinstance(objective, ScoreStein):
        _scored(model)


def _scored(model: AbstractProbabilityFlow) -> AbstractGaussianFlow:
    if not follows_path(model):
        raise TypeError(
            f"ScoreStein expected a model that follows a Gaussian path, since it has a score; got {type(model).__name__}"
            f"{', trained on its likelihood' if isinstance(model, AbstractGaussianFlow) else ''}. "
            "Fix: objective = fd.objectives.LangevinStein()"
        )
    return model
