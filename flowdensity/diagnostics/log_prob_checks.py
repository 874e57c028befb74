"""Whether `log_prob` is the log density of what the model samples: divergence, amortisation, solver, normaliser and tails."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Key
from ..data.tables import Sample
from ..divergence.calibration import Residuals, stein_residuals
from ..divergence.kernel import mean_jacobian
from ..divergence.objectives import LangevinStein
from ..solving import AbstractSolver, Adaptive, FixedStep
from ..training.divergence import TRAJECTORY_STEPS, centres_about_samples
from .findings import Finding
from .subject import Solved, Subject, slopes, values

RMSE, BIAS = 0.4, 0.1
"""Nats by which `log_prob` may be off: weights back to the exact density then keep 85 % of the draws."""
GRADIENT = 0.3
"""Share of the gradient by which it may be off."""
STEPS = 0.05
"""Nats by which it may change when the steps are doubled."""
FACTORS = (2.0, 4.0, 10.0)
"""By which samples are moved outwards."""
EXCESS = 0.3
"""Nats for each root of the dimension by which `log_prob` may be above the exact one there."""
KERNELS = 16_384
"""Kernel draws for the residuals."""
GRID = 64
"""Points a side of the grid that two dimensions are integrated on."""
NORMALISER = 0.1
"""Nats by which the log of the integral may differ from zero."""


AGREEMENT = "log_prob against the exact divergence"
TAILS = "Tails, samples moved outwards"


def errors(subject: Subject, points: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Log densities of points, and their errors by each of one or two rivals, shape `(2, points)`."""
    own = values(subject.log_prob, points)
    rivals = own[None] if subject.exact else np.stack([values(rival, points) for rival in subject.rivals])
    return own, own - np.broadcast_to(rivals if len(rivals) == 2 else rivals[[0, 0]], (2, len(own)))


def agreement(subject: Subject, error: np.ndarray, where: str) -> list[Finding]:
    """Bias and root mean square of the errors; with two rivals by the product of both, which has no bias in any dimension."""
    remedy = (
        "log_prob is off by more than a posterior forgives. More steps of fd.fit_divergence can help, and fd.reweight corrects a "
        f"posterior. {_exact(subject)}"
    )
    if subject.density.is_amortized:
        remedy = (
            "The network is too far from its flow. More labels for fd.distill can help, and fd.reweight corrects a posterior. "
            f"{_exact(subject)}"
        )
    count = error.shape[1]
    squares, mean = error[0] * error[1], error.mean(0)
    square, square_error = squares.mean(), squares.std() / math.sqrt(count)
    rmse = math.sqrt(max(square, 0.0))
    # Of a root the standard error is that of the square over twice the root; near zero, the root of that of the square.
    rmse_error = square_error / (2.0 * rmse) if square > square_error else math.sqrt(square_error)
    return [
        Finding(AGREEMENT, f"root mean square over {where}, nats", rmse, rmse_error, "at most", RMSE, remedy),
        Finding(
            AGREEMENT, "size of the bias, nats", abs(mean.mean()), mean.std() / math.sqrt(count), "at most", BIAS, remedy
        ),
    ]  # fmt: skip


def gradients(subject: Subject, points: Sample) -> list[Finding]:
    """Root mean square error of the gradient over its own root mean square, both by unbiased products."""
    quantity = "error of the gradient, share of it"
    if subject.exact:
        return [Finding(AGREEMENT, quantity, 0.0, 0.0, "at most", GRADIENT, "")]
    own = slopes(subject.log_prob, points)
    rivals = [slopes(rival, points) for rival in subject.rivals]
    first, last = rivals[0], rivals[-1]
    wrong = np.sum((own - first) * (own - last), axis=1)
    right = np.sum(first * last, axis=1)
    share = math.sqrt(max(wrong.mean(), 0.0) / right.mean())
    # Of the ratio of two means, by its linearisation; halved for the root.
    spread = (wrong - share**2 * right).std() / right.mean() / math.sqrt(len(wrong))
    error = spread / (2.0 * share) if share**2 > spread else math.sqrt(spread)
    words = f"A sampler follows the gradient. More steps, or a smoother activation, can help. {_exact(subject)}"
    return [Finding(AGREEMENT, quantity, share, error, "at most", GRADIENT, words)]


def residuals(key: Key, subject: Subject) -> tuple[list[Finding], Residuals | None]:
    """The learned divergence by its Stein residuals about samples of the model, with no Jacobian."""
    section = "Stein residuals of the learned divergence"
    model = subject.model
    divergence: Any = subject.flow.divergence
    if not divergence.is_learned:
        words = f"the divergence is had by {type(divergence).__name__}, which was not learned"
        return [Finding(section, "bias that they imply, nats", None, 0.0, "at most", BIAS, words)], None
    centre_key, jacobian_key, draw_key = jr.split(key, 3)
    around = centres_about_samples(centre_key, model, subject.draw(centre_key, 4096), 4096)
    within = LangevinStein(tails=0.0)
    control = mean_jacobian(model, jnp.sort(model.times(TRAJECTORY_STEPS)), within.draw(jacobian_key, around, KERNELS))
    found = stein_residuals(divergence.head, model, control, within.draw(draw_key, around, KERNELS))
    bias, error = found.bias
    # Whitened coordinates have a root mean square of about one: these are nats too, and at most that of the error itself.
    widths = np.diff(found.times)[:, None]
    implied = np.abs(np.sum(widths * found.mean[:, 2:], axis=0))
    spread = np.sqrt(np.sum(np.square(widths * found.standard_error[:, 2:]), axis=0))
    worst = int(np.argmax(implied - spread))
    words = (
        "The head is biased. fd.fit_divergence can help, with more steps and with the data that the density is used on. "
        f"{_exact(subject)}"
    )
    return [
        Finding(section, "bias that they imply, nats", abs(bias), error, "at most", BIAS, words),
        Finding(
            section, f"along a coordinate, y[{worst}], nats", implied[worst], spread[worst], "at most", RMSE, words
        ),
    ], found  # fmt: skip


def steps(subject: Subject, points: Sample, own: np.ndarray) -> list[Finding]:
    """The change of the flow's `log_prob` when the solver takes twice as many steps; `own` are the density's log densities."""
    model, divergence, solver = subject.model, subject.flow.divergence, subject.flow.solver
    finer, fix = _finer(solver)
    amortized = subject.density.is_amortized
    coarse = values(Solved(model, divergence, solver), points) if amortized else own
    fine = values(Solved(model, divergence, finer), points)
    change = np.square(coarse - fine)
    rms = math.sqrt(change.mean())
    error = change.std() / math.sqrt(len(change)) / (2.0 * rms) if rms > 0.0 else 0.0
    whose = "density.flow" if amortized else "density"
    words = f"The solver is too coarse. Fix: density = {whose}.{fix}"
    return [Finding("Solver", "change with twice the steps, nats", rms, error, "at most", STEPS, words)]


def normaliser(subject: Subject, drawn: Sample, error: np.ndarray) -> list[Finding]:
    """The integral of the density: by importance sampling from the flow, whose exact density has none but the solver's error."""
    section = "Normalisation"
    words = f"The density does not integrate to one. More steps of fd.fit_divergence can help. {_exact(subject)}"
    findings = []
    quantity = "size of the log integral by samples, nats"
    if len(subject.rivals) > 1:
        absent = f"the exact divergence is too dear in {subject.model.dim} dimensions"
        findings.append(Finding(section, quantity, None, 0.0, "at most", NORMALISER, absent))
    else:
        ratio = np.exp(error[0])
        spread = ratio.std() / ratio.mean() / math.sqrt(len(ratio))
        findings.append(Finding(section, quantity, abs(math.log(ratio.mean())), spread, "at most", NORMALISER, words))
    if subject.model.dim <= 2:
        radius = 1.5 * float(jnp.max(jnp.abs(drawn.states)))
        coarse, fine = (_integral(subject, drawn.contexts[0], radius, points) for points in (GRID // 2, GRID))
        findings.append(
            Finding(
                section, "size of the log integral by quadrature, nats", abs(fine), abs(fine - coarse), "at most", NORMALISER,
                words,
            )
        )  # fmt: skip
    return findings


def tails(subject: Subject, drawn: Sample) -> tuple[list[Finding], np.ndarray]:
    """Samples moved outwards: `log_prob` must fall, and must not be far above the exact one, where a chain would get lost."""
    bound = EXCESS * math.sqrt(subject.model.dim)
    moved = [drawn._replace(states=factor * drawn.states) for factor in FACTORS]
    own, exact = ([values(each, points) for points in moved] for each in (subject.log_prob, subject.rivals[0]))
    words = (
        "The learned divergence is wrong where there are no data. The default objective, fd.LangevinStein(tails=0.15), learns "
        f"from tails. {_exact(subject)}"
    )
    if subject.density.is_amortized:
        words = f"The network is off where there are no data. fd.reweight corrects a posterior. {_exact(subject)}"
    findings = []
    for factor, ours, theirs in zip(FACTORS, own, exact, strict=True):
        # A percentile's standard error by the order statistics on both sides of it.
        low, value, high = np.percentile(ours - theirs, [98.0, 99.0, 100.0])
        findings.append(
            Finding(
                TAILS, f"99 % of the excess at {factor:g}x, nats", value, (high - low) / 4.0, "at most", bound, words
            )
        )  # fmt: skip
    # From the farthest sample outwards: before, a ray may pass between modes.
    radii = jnp.linalg.norm(drawn.states, axis=1, keepdims=True)
    edge = drawn.states / radii * jnp.max(radii)
    heights = [values(subject.log_prob, drawn._replace(states=factor * edge)) for factor in (1.0, *FACTORS)]
    rising = float(np.mean(np.any(np.diff(heights, axis=0) >= 0.0, axis=0)))
    findings.append(
        Finding(TAILS, "share of rays beyond all samples on which it rises", rising, 0.0, "at most", 0.0, words)
    )
    return findings, np.stack([own, exact], axis=1)


def _exact(subject: Subject) -> str:
    """The line for the flow's density with the exact divergence, as a fix."""
    whose = "density.flow" if subject.density.is_amortized else "density"
    return f"Fix: density = {whose}.with_divergence(fd.ExactDivergence())"


def _finer(solver: AbstractSolver) -> tuple[AbstractSolver, str]:
    if isinstance(solver, FixedStep):
        return FixedStep(2 * solver.steps, solver.method), f"with_solver(fd.FixedStep(steps={4 * solver.steps}))"
    assert isinstance(solver, Adaptive)
    finer = Adaptive(solver.rtol / 10.0, solver.atol / 10.0, solver.method, 4 * solver.max_steps)
    return finer, f"with_solver(fd.Adaptive(rtol={finer.rtol:g}, atol={finer.atol:g}))"


def _integral(subject: Subject, context: jax.Array, radius: float, points: int) -> float:
    """Log of the integral by the midpoint rule on a square, in one or two dimensions."""
    axis = radius * (2.0 * (np.arange(points) + 0.5) / points - 1.0)
    grid = np.stack(np.meshgrid(*[axis] * subject.model.dim), axis=-1).reshape(-1, subject.model.dim)
    rows = Sample(jnp.asarray(grid, float), jnp.broadcast_to(context, (len(grid), len(context))))
    log_probs = values(subject.log_prob, rows)
    return float(np.log(np.sum(np.exp(log_probs))) + subject.model.dim * math.log(2.0 * radius / points))
