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
from .._typing import Array, ArrayLike, Context, Float, Key, Scalar, State, Times
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
from .departure import departs
from .loop import NOTHING_TO_LEARN, History, Schedule, train
from .report import FitReport
from .results import activity, last, relay, until_interrupted
from .training import FEW_ROWS, Training, check_training

MAX_TRAJECTORIES = 20_000
"""Maximum number of samples of the model, and of trajectories through the data, around which kernels are drawn."""
MAX_TRAJECTORY_ENTRIES = 2**26
"""Maximum number of array entries in the states of trajectories, which take a quarter of a gigabyte."""
TRAJECTORY_STEPS = 16
"""Number of steps of the trajectories, and of time intervals of the mean Jacobian."""
MAX_CALIBRATION_DRAWS = 131_072
"""Maximum number of kernel draws for each of the mean Jacobian, the calibration and the residuals."""
MAX_VALIDATION_DRAWS = 8192
"""Maximum number of kernel draws for the validation loss."""
MAX_SCALE_DRAWS = 4096
"""Maximum number of kernel draws from which the scale of a new head is computed."""
LEARNING_RATE = 3e-3
"""Default peak learning rate of a divergence head."""
TRUNK_SIZE = (256, 3)
"""Width and depth of a head for a model without hidden features."""

Inputs: TypeAlias = tuple[AbstractProbabilityFlow, MeanJacobian, AbstractCenters, Kernel]
"""Arguments of the losses of a distillation: model, control variate, centers and held-out draws."""


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

    A scalar head $g$ reads the model's hidden features or, if the model has none, its output. At points
    $y = c + h\eta$ of Gaussian kernels around centers $c$ from the data and from samples of the model, the head minimizes
    $\mathbb{E}[g^2 - 2gT - 2\,r\cdot\nabla g]$ with $r = F(c) - F(y)$ and $T = -r\cdot\eta/h$. Some of the centers are moved
    outwards. The velocity is evaluated but never differentiated for its divergence (Jagwani et
    al. 2026, arXiv 2605.16486). A calibration then removes the bias that the Stein residuals show on samples of the model.

    If the model follows a Gaussian probability path, the centers are on that path and on the model's trajectories through the
    data. Otherwise they are only on the model's own trajectories.

    Args:
        key: JAX PRNG key.
        model: the model, such as `density.model`, a `VelocityField` or a pretrained diffusion. It is not changed.
        data: events, shape `(n, *event_shape)`, in the user's units. They may differ from the data the model was trained on.
        context: contexts, shape `(n, *context_shape)`, for a conditional model.
        objective: training objective of the head; `LangevinStein()` by default.
        training: steps, kernel draws in each step and learning rate. The default is `Training()` with a
            peak learning rate of 3e-3. No rows are held out, since draws are unlimited.
        checkpoint: as in `fit_flow`.
        progress: whether to show a bar with step, losses and time left.

    Returns:
        The learned divergence and a report with its Stein residuals.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.

    Examples:
        >>> divergence, report = fd.fit_divergence(key, density.model, data)
        >>> print(report.summary())
        >>> density.with_divergence(divergence).log_prob(data[:5])
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
    """Yield a density with the exact divergence, for which nothing is learned, and then one with each learned divergence."""
    yield FlowDensity(model, divergence=ExactDivergence()), FitReport({}, {})
    for divergence, report in learned:
        yield FlowDensity(model, divergence=divergence), report


class HeadLoss(eqx.Module):
    """Objective over fresh kernel draws.

    Args:
        objective: training objective of the head.
        batch_size: number of draws in each step. It is rounded up to whole frames.
    """

    objective: AbstractObjective
    batch_size: int = eqx.field(static=True)

    def __call__(self, head: DivergenceHead, key: Key, args: Inputs) -> Scalar:
        model, control, around, _ = args
        return self.objective.mean_loss(head, model, control, self.objective.draw(key, around, self.batch_size))


class HeldHeadLoss(eqx.Module):
    """Objective over fixed kernel draws."""

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
    """Distill the divergence of `model`, with centers around a whitened table and samples of the model.

    This is `fit_divergence` without its checks. It yields the divergence after each improvement in training, and then after
    calibration. Nothing is yielded before the first step.
    """
    pool_key, kernel_key, head_key, held_key, train_key, calibrate_key, verify_key = jr.split(key, 7)
    started = time.monotonic()
    # With few rows, the error of the velocity is larger than the error that more steps would remove from its divergence.
    steps = 2000 if table.effective < FEW_ROWS else 4000
    plan = training.plan(steps=steps, batch_size=512, learning_rate=LEARNING_RATE)
    draws = plan.share(16, 1024, MAX_CALIBRATION_DRAWS)
    head = _new_head(head_key, model, table.states[0], table.contexts[0])
    if not departs(model, table):
        yield SteinDivergence(head), FitReport({"divergence": NOTHING_TO_LEARN}, {})
        return
    # The mean Jacobian, the calibration and the residuals are averages, so their centers are not moved outwards.
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
        head = _scaled(head, model, spread_over(kernels, MAX_SCALE_DRAWS))
        held = spread_over(objective.draw(held_key, around, draws), plan.share(60, 256, MAX_VALIDATION_DRAWS))
    seconds = {"preparation": time.monotonic() - started}
    # Draws are unlimited, so early stopping is not needed.
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
        # A velocity behaves differently around the rows it was trained on, so only samples of the model are used here.
        head = calibrate(head, model, control, within.draw(calibrate_key, own, draws))
        yield SteinDivergence(head), dataclasses.replace(report, interrupted=(*cut, "residuals"))
        residuals = stein_residuals(head, model, control, within.draw(verify_key, own, draws))
    seconds = seconds | {"calibration": time.monotonic() - started}
    yield SteinDivergence(head), FitReport({"divergence": history}, seconds, residuals, interrupted=cut or None)


@eqx.filter_jit
def _new_head(key: Key, model: AbstractProbabilityFlow, state: State, context: Context) -> DivergenceHead:
    """Create a head of zero for `model`, which has hidden features like those at the given state and context."""
    _, hidden = model.network_velocity(model.times(1)[0], state, context)
    # A head on hidden features is no wider than the network that provides them. Without hidden features it needs more layers.
    seen, width, depth = (
        ((model.dim,), *TRUNK_SIZE) if hidden is None else (hidden.shape, min(128, hidden.shape[-1]), 1)
    )
    unit = jnp.ones(())
    return DivergenceHead(
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


@eqx.filter_jit
def _scaled(head: DivergenceHead, model: AbstractProbabilityFlow, kernels: Kernel) -> DivergenceHead:
    """The head with a scale and a bound computed from its training targets."""
    none = MeanJacobian(jnp.sort(model.times(1)), jnp.zeros((2, model.dim)))
    targets = jax.vmap(lambda kernel: stein_terms(head, model, none, kernel).target)(kernels)
    # The floors keep ratios finite.
    scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(targets))), 1e-6)
    bound = jnp.maximum(jnp.max(jnp.abs(targets)), 1e-6)
    return eqx.tree_at(lambda h: (h.scale, h.bound), head, (scale, bound))


def centers_about_data(key: Key, model: AbstractProbabilityFlow, table: Sample, count: int) -> AbstractCenters:
    """Centers on at most `count` trajectories through the rows of a table. If the model follows a path, half are on the path.

    If the samples of the model differ from the data, its trajectories through the data leave the path. The `log_prob` of the
    data is evaluated along these trajectories, so they need centers too.
    """
    # Centers may have any distribution, so the weights of the rows are ignored.
    table = table._replace(weights=None)
    nodes = model.times(TRAJECTORY_STEPS)
    chosen = table.take(jr.permutation(key, len(table.states))[: _at_most(model, count)])
    states = _trajectories(model, nodes[::-1], chosen)[:, ::-1]
    if not follows_path(model):
        return TrajectoryCenters(nodes, states, chosen.contexts)
    return HalvedCenters(PathCenters(table, model), TrajectoryCenters(nodes, states, chosen.contexts, jnp.cos(nodes)))


def centers_about_samples(key: Key, model: AbstractProbabilityFlow, table: Sample, count: int) -> AbstractCenters:
    """Centers around at most `count` samples of the model, given contexts of the table."""
    rows, noise = jr.split(key)
    count = _at_most(model, count)
    contexts = table.draw(rows, count).contexts
    start = Sample(jr.normal(noise, (count, model.dim)), contexts)
    if follows_path(model):
        return PathCenters(Sample(_trajectories(model, model.times(1), start)[:, -1], contexts), model)
    nodes = model.times(TRAJECTORY_STEPS)
    return TrajectoryCenters(nodes, _trajectories(model, nodes, start), contexts)


def spread_over(kernels: Kernel, draws: int) -> Kernel:
    """Select equally spaced kernels with at most `draws` draws in total. Kernels are in the order of their times."""
    frames, directions = kernels.noise.shape[:2]
    return jax.tree.map(lambda leaf: leaf[:: -(-frames * directions // draws)], kernels)


def _at_most(model: AbstractProbabilityFlow, count: int) -> int:
    """Limit `count` trajectories to a number that fits into memory."""
    return min(count, max(1, MAX_TRAJECTORY_ENTRIES // ((TRAJECTORY_STEPS + 1) * model.dim)))


@eqx.filter_jit
def _trajectories(model: AbstractProbabilityFlow, nodes: Times, start: Sample) -> Float[Array, "rows nodes dim"]:
    """Whitened states of many solutions at `nodes`. The solutions start at the first node."""
    # Centers may have any distribution, so coarse steps do no harm.
    solver = FixedStep(-(-TRAJECTORY_STEPS // (len(nodes) - 1)))
    return jax.lax.map(lambda row: trajectory(model, nodes, row.states, row.contexts, solver), start, batch_size=1000)
