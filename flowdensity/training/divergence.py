"""Distilling the divergence of a frozen model."""

import dataclasses
import os
import time
from collections.abc import Iterator
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._checks import check_key
from .._pytree import in_session
from .._typing import Array, ArrayLike, Float, Key, Scalar, Times
from ..data.tables import Named, Sample
from ..data.whitened import whitened
from ..distributions.checks import check_flow_model
from ..distributions.flow import FlowDensity
from ..divergence.calibration import calibrate, stein_residuals
from ..divergence.centers import AbstractCenters, HalvedCenters, PathCenters, TrajectoryCenters
from ..divergence.exact import ExactDivergence
from ..divergence.kernel import Kernel, MeanJacobian, mean_jacobian, stein_terms
from ..divergence.objectives import AbstractObjective, LangevinStein, check_objective
from ..divergence.stein import DivergenceHead, SteinDivergence
from ..models.flows import AbstractProbabilityFlow, follows_path
from ..solving import FixedStep, trajectory
from .checkpoints import Checkpoint, open_checkpoint
from .loop import History, Schedule, train
from .report import FitReport
from .results import activity, last, relay, until_interrupted
from .training import FEW_ROWS, Training, check_training

MAX_TRAJECTORIES = 20_000
"""Maximum number of model samples, and of trajectories through the data, that kernels are centered on."""
MAX_TRAJECTORY_ENTRIES = 2**26
"""Maximum number of array entries in the states of trajectories: a quarter of a gigabyte."""
TRAJECTORY_STEPS = 16
"""Steps of the trajectories and of the mean Jacobian."""
MAX_CALIBRATION_DRAWS = 131_072
"""Maximum number of kernel draws for each of the mean Jacobian, the calibration and the residuals."""
MAX_VALIDATION_DRAWS = 8192
"""Maximum number of kernel draws for the validation loss."""
MAX_SCALE_DRAWS = 4096
"""Maximum number of kernel draws for the scale of a new head."""
LEARNING_RATE = 3e-3
"""Default peak learning rate of a divergence head."""
TRUNK_SIZE = (256, 3)
"""Width and depth of a head that has no hidden features to read."""

Inputs: TypeAlias = tuple[AbstractProbabilityFlow, MeanJacobian, AbstractCenters, Kernel]
"""What the losses of a distillation are handed: model, control variate, centers and held-out draws."""


def fit_divergence(
    key: Key,
    model: AbstractProbabilityFlow,
    data: ArrayLike | Named,
    context: ArrayLike | Named | None = None,
    *,
    objective: AbstractObjective | None = None,
    training: Training | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[SteinDivergence, FitReport]:
    r"""Distill the divergence of a frozen model with the Langevin-Stein operator.

    A scalar head $g$ on the model's hidden features or, where it shows none, on its output minimizes
    $\mathbb{E}[g^2 - 2gT - 2\,r\cdot\nabla g]$ over Gaussian kernels about centers from the data and from the model's own
    samples, some of them inflated; the velocity is evaluated and never differentiated for its divergence (Jagwani et al. 2026,
    arXiv 2605.16486). What bias the Stein residuals still show on samples of the model is then taken out. The centers of
    a model that follows a Gaussian path are on that path and on its trajectories through the data; those of any other model are
    on its own trajectories alone.

    Args:
        key: JAX PRNG key.
        model: the model, such as `density.model`, a `VelocityField` or a pretrained diffusion; it is not changed.
        data: events, shape `(n, *event_shape)`, in the user's units; they need not be those it was trained on.
        context: shape `(n, *context_shape)`, for a conditional model.
        objective: what the head is trained on; `LangevinStein()` by default.
        training: steps, kernel draws in each step (at least one frame of them), learning rate; by default `Training()`, with a
            peak learning rate of 3e-3. Nothing is held out, since draws are unlimited.
        checkpoint: as `fit_flow`.
        progress: whether to show a bar with step, losses and time left.

    Returns:
        The learned divergence and a report with its residuals.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.
    """
    caller = "fit_divergence"
    check_key(caller, key)
    check_flow_model(caller, model)
    model = in_session(model)
    objective = LangevinStein() if objective is None else objective
    check_objective(caller, objective, model)
    training = check_training(caller, training)
    table = whitened(caller, model.scaling, model.context_scaling, data, context)
    saved = open_checkpoint(caller, checkpoint, key, model, table, *training.fingerprint(), objective)
    learned = fit_divergence_head(key, model, table, training, objective, progress=progress, checkpoint=saved)
    density, report = last(_with_exact_first(model, learned))
    divergence = density.divergence
    assert isinstance(divergence, SteinDivergence), "nothing is returned before a step was done"
    return divergence, report


def _with_exact_first(
    model: AbstractProbabilityFlow, learned: Iterator[tuple[SteinDivergence, FitReport]]
) -> Iterator[tuple[FlowDensity, FitReport]]:
    """Densities with the divergences that are learned, and before them the exact one, of which nothing is learned."""
    yield FlowDensity(model, divergence=ExactDivergence()), FitReport({}, {})
    for divergence, report in learned:
        yield FlowDensity(model, divergence=divergence), report


class HeadLoss(eqx.Module):
    """An objective over fresh draws.

    Args:
        objective: what the head is trained on.
        batch_size: draws in each step, or a little more: frames are whole.
    """

    objective: AbstractObjective
    batch_size: int = eqx.field(static=True)

    def __call__(self, head: DivergenceHead, key: Key, args: Inputs) -> Scalar:
        model, control, around, _ = args
        return self.objective.mean_loss(head, model, control, self.objective.draw(key, around, self.batch_size))


class HeldHeadLoss(eqx.Module):
    """The same over fixed draws."""

    objective: AbstractObjective

    def __call__(self, head: DivergenceHead, args: Inputs) -> Scalar:
        model, control, _, kernels = args
        return self.objective.mean_loss(head, model, control, kernels)


def fit_divergence_head(
    key: Key,
    model: AbstractProbabilityFlow,
    table: Sample,
    training: Training,
    objective: AbstractObjective,
    *,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Iterator[tuple[SteinDivergence, FitReport]]:
    """Distill the divergence of `model`, with centers about a whitened table and the model's own samples.

    As `fit_divergence`, after its checks. Yields divergences as soon as a step was done: first as they are trained, and then
    calibrated.
    """
    pool_key, kernel_key, head_key, held_key, train_key, calibrate_key, verify_key = jr.split(key, 7)
    started = time.monotonic()
    # Of few rows the velocity itself is less certain than the rest of the steps would make its divergence.
    steps = 2000 if table.effective < FEW_ROWS else 4000
    plan = training.plan(steps=steps, batch_size=512, learning_rate=LEARNING_RATE)
    draws = plan.share(16, 1024, MAX_CALIBRATION_DRAWS)
    # Without tails, for what is to be right on the average: the mean Jacobian, calibration and residuals.
    within = LangevinStein(tails=0.0)
    with activity("preparation of the divergence", progress):
        data_key, own_key = jr.split(pool_key)
        pool = plan.share(25, 256, MAX_TRAJECTORIES)
        data, own = (
            centers_about_data(data_key, model, table, pool),
            centers_about_samples(own_key, model, table, pool),
        )
        around = {"data": data, "model": own, "both": HalvedCenters(data, own)}[objective.source]
        nodes = jnp.sort(model.times(TRAJECTORY_STEPS))
        kernels = within.draw(kernel_key, around, draws)
        control = mean_jacobian(model, nodes, kernels)
        head = _new_head(head_key, model, spread_over(kernels, MAX_SCALE_DRAWS))
        held = spread_over(objective.draw(held_key, around, draws), plan.share(60, 256, MAX_VALIDATION_DRAWS))
    seconds = {"preparation": time.monotonic() - started}
    if not jnp.any(control.matrices):
        history = History((0,), (0.0,), (0.0,), status="nothing to learn")
        yield SteinDivergence(head), FitReport({"divergence": history}, seconds)
        return
    # Draws are unlimited, so there is nothing to stop early for.
    schedule = Schedule(plan.steps, plan.learning_rate, patience=None, optimizer=plan.optimizer)
    results = train(
        train_key, head, HeadLoss(objective, plan.batch_size), HeldHeadLoss(objective),
        (model, control, around, held), schedule, stage="divergence", progress=progress, checkpoint=checkpoint,
    )  # fmt: skip

    def so_far(trained: tuple[DivergenceHead, History]) -> tuple[SteinDivergence, FitReport] | None:
        head, history = trained
        report = FitReport({"divergence": history}, seconds, interrupted=("divergence", "calibration"))
        return (SteinDivergence(head), report) if history.learned else None

    head, history = yield from relay(until_interrupted(results), so_far)
    cut = ("divergence",) if history.status == "interrupted" else ()
    seconds = seconds | {"divergence": history.seconds}
    report = FitReport({"divergence": history}, seconds, interrupted=(*cut, "calibration"))
    yield SteinDivergence(head), report
    started = time.monotonic()
    with activity("calibration", progress):
        # About rows that it was trained on a velocity is not what it is elsewhere: they are left out here.
        head = calibrate(head, model, control, within.draw(calibrate_key, own, draws))
        yield SteinDivergence(head), dataclasses.replace(report, interrupted=(*cut, "residuals"))
        residuals = stein_residuals(head, model, control, within.draw(verify_key, own, draws))
    seconds = seconds | {"calibration": time.monotonic() - started}
    yield SteinDivergence(head), FitReport({"divergence": history}, seconds, residuals, interrupted=cut or None)


@eqx.filter_jit
def _new_head(key: Key, model: AbstractProbabilityFlow, kernels: Kernel) -> DivergenceHead:
    """A head for `model`, with its scale and bound read off the targets it will be trained on."""
    one = jax.tree.map(lambda leaf: leaf[0], kernels)
    _, hidden = model.network_velocity(one.time, one.center, one.context)
    # On hidden features it is no wider than the trunk it reads; where there are none it is a trunk of its own.
    seen, width, depth = (
        ((model.dim,), *TRUNK_SIZE) if hidden is None else (hidden.shape, min(128, hidden.shape[-1]), 1)
    )
    unit = jnp.ones(())
    head = DivergenceHead(
        key,
        model.dim,
        seen,
        span=model.times(1),
        reach=model.reach,
        scale=unit,
        bound=unit,
        width=width,
        depth=depth,
    )
    none = MeanJacobian(jnp.sort(model.times(1)), jnp.zeros((2, model.dim)))
    targets = jax.vmap(lambda kernel: stein_terms(head, model, none, kernel).target)(kernels)
    # A flow that stayed at its start has nothing to learn; the floors keep ratios finite.
    scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(targets))), 1e-6)
    bound = jnp.maximum(jnp.max(jnp.abs(targets)), 1e-6)
    return eqx.tree_at(lambda h: (h.scale, h.bound), head, (scale, bound))


def centers_about_data(key: Key, model: AbstractProbabilityFlow, table: Sample, count: int) -> AbstractCenters:
    """Centers on at most `count` trajectories through the rows of a table and, where there is a path, half of them on it.

    Where the model's samples are not like the data, its trajectories through the data are off the path of both: they are where
    the data's `log_prob` is evaluated, and so there are centers on them too.
    """
    # Centers may have any distribution: rows are not drawn as often as they weigh.
    table = table._replace(weights=None)
    nodes = model.times(TRAJECTORY_STEPS)
    chosen = table.take(jr.permutation(key, len(table.states))[: _at_most(model, count)])
    states = _trajectories(model, nodes[::-1], chosen)[:, ::-1]
    if not follows_path(model):
        return TrajectoryCenters(nodes, states, chosen.contexts)
    return HalvedCenters(PathCenters(table, model), TrajectoryCenters(nodes, states, chosen.contexts, jnp.cos(nodes)))


def centers_about_samples(key: Key, model: AbstractProbabilityFlow, table: Sample, count: int) -> AbstractCenters:
    """Centers about at most `count` samples of the model itself, given contexts of the table."""
    rows, noise = jr.split(key)
    count = _at_most(model, count)
    contexts = table.draw(rows, count).contexts
    start = Sample(jr.normal(noise, (count, model.dim)), contexts)
    if follows_path(model):
        return PathCenters(Sample(_trajectories(model, model.times(1), start)[:, -1], contexts), model)
    nodes = model.times(TRAJECTORY_STEPS)
    return TrajectoryCenters(nodes, _trajectories(model, nodes, start), contexts)


def spread_over(kernels: Kernel, draws: int) -> Kernel:
    """As many of some kernels as have at most so many draws, at equal distances: kernels are in the order of their times."""
    frames, directions = kernels.noise.shape[:2]
    return jax.tree.map(lambda leaf: leaf[:: -(-frames * directions // draws)], kernels)


def _at_most(model: AbstractProbabilityFlow, count: int) -> int:
    """As many of `count` trajectories as memory should hold."""
    return min(count, max(1, MAX_TRAJECTORY_ENTRIES // ((TRAJECTORY_STEPS + 1) * model.dim)))


@eqx.filter_jit
def _trajectories(model: AbstractProbabilityFlow, nodes: Times, start: Sample) -> Float[Array, "rows nodes dim"]:
    """Whitened states of many solutions at `nodes`, the first of which is the time of their starts."""
    # Centers may have any distribution: coarse steps do no harm.
    solver = FixedStep(-(-TRAJECTORY_STEPS // (len(nodes) - 1)))
    return jax.lax.map(lambda row: trajectory(model, nodes, row.states, row.contexts, solver), start, batch_size=1000)
