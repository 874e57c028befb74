"""Distilling the divergence of a frozen model."""

import time
from typing import TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from .._typing import ArrayLike, Key, Rows, Scalar
from ..data.tables import context_table, event_table
from ..distributions.flow import FlowDensity
from ..divergence.kernel import Kernel, MeanJacobian, mean_jacobian, stein_terms
from ..divergence.stein import DivergenceHead, SteinDivergence
from ..models.flows import Flow
from ..solving import FixedStep
from .calibration import calibrate, stein_residuals
from .loop import History, Schedule, TrainingDiverged, train
from .losses import Sample, draw_kernels, stein_loss
from .options import Options, check_kind, check_options
from .report import FitReport

RHO = 0.1
"""Kernel width as a fraction of the noise on the path."""
TAILS = 0.15
"""Fraction of kernel centres that are inflated beyond the data."""
POOL = 20_000
"""Samples of the model from which kernel centres are drawn, beside the data."""
CALIBRATION = 131_072
"""Kernel draws about the model's own samples for calibration, and as many fresh ones for the residuals reported."""
WHOLE_FRAME = 8
"""Up to this dimension a whole frame is drawn about each centre, above it one direction: more centres are then worth more."""
LEARNING_RATE = 2e-3

Inputs: TypeAlias = tuple[Flow, MeanJacobian, Sample, Kernel]
"""What the losses of a distillation are handed: model, control variate, centres and held-out draws."""


def fit_divergence(
    key: Key,
    model: Flow,
    data: ArrayLike,
    context: ArrayLike | None = None,
    *,
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    progress: bool = True,
) -> tuple[SteinDivergence, FitReport]:
    r"""Distil the divergence of a frozen model with the Langevin-Stein operator.

    A scalar head $g$ on the model's hidden features minimises $\mathbb{E}[g^2 - 2gT - 2\,r\cdot\nabla g]$ over Gaussian
    kernels about centres from the data and from the model's own samples, some of them inflated; the velocity is
    evaluated and never differentiated for its divergence (Jagwani et al. 2026, arXiv 2605.16486). What bias the Stein
    residuals still show on samples of the model is then taken out.

    Args:
        key: JAX PRNG key.
        model: the model; it is not changed.
        data: events, shape `(n, *event_shape)`, in the user's units; they need not be those it was trained on.
        context: shape `(n, *context_shape)`, for a conditional model.
        steps: optimiser steps; by default 8,000, or 4,000 below 2,000 rows.
        batch_size: kernel draws in each step (at least one frame of them); by default 512.
        learning_rate: peak learning rate; by default 2e-3.
        progress: whether to show a bar with step, losses and time left.

    Returns:
        The learned divergence and a report with its residuals.

    Raises:
        TypeError, ValueError, TrainingDiverged: as `fit_flow`.
    """
    caller = "fit_divergence"
    check_kind(caller, "model", model, Flow, "density.model")
    events = event_table(caller, data, model.scaling.support)
    options = check_options(caller, len(events), steps, batch_size, learning_rate)
    contexts = context_table(caller, context, len(events))
    for name, table, shape in (
        ("data", events, model.event_shape),
        ("context", contexts, model.context_shape),
    ):
        if table.shape[1:] != shape:
            raise ValueError(
                f"{caller} expected `{name}` with shape (n, {', '.join(map(str, shape))}), as the model was trained with; "
                f"got {table.shape}. Fix: pass the columns the model was trained on, in their order"
            )
    whiten = jax.vmap(lambda scaling, row: scaling.whiten(row)[0], in_axes=(None, 0))
    table = Sample(
        whiten(model.scaling, jnp.asarray(events, float)),
        whiten(model.context_scaling, jnp.asarray(contexts, float)),
    )
    return distil(key, model, table, options, progress=progress)


def distil(
    key: Key, model: Flow, table: Sample, options: Options, *, progress: bool
) -> tuple[SteinDivergence, FitReport]:
    """Distil the divergence of `model`, with centres from a whitened table and the model's own samples.

    As `fit_divergence`, after its checks.
    """
    pool_key, jacobian_key, scale_key, head_key, held_key, train_key, calibrate_key, check_key = jr.split(key, 8)
    started = time.monotonic()
    own = _model_samples(pool_key, model, table)
    pool = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), table, own)

    directions = model.dim if model.dim <= WHOLE_FRAME else 1

    def kernels(key: Key, pool: Sample, draws: int, tails: float = TAILS) -> Kernel:
        frames = -(-draws // directions)
        return draw_kernels(key, pool, model.path, frames, rho=RHO, tails=tails, directions=directions)

    def loss(head: DivergenceHead, key: Key, args: Inputs) -> Scalar:
        model, control, pool, _ = args
        return stein_loss(head, model, control, kernels(key, pool, options.batch_size))

    def validate(head: DivergenceHead, args: Inputs) -> Scalar:
        model, control, _, draws = args
        return stein_loss(head, model, control, draws)

    control = eqx.filter_jit(mean_jacobian)(model, model.times(16), kernels(jacobian_key, pool, CALIBRATION, tails=0.0))
    head = _new_head(head_key, model, kernels(scale_key, pool, 4096, tails=0.0))
    seconds = {"preparation": time.monotonic() - started}
    if not jnp.any(control.matrices):
        history = History(
            [0], [0.0], [0.0], stopped="nothing to learn, since the velocity is zero: a head of zero is exact"
        )
        return SteinDivergence(head), FitReport({"divergence": history}, seconds)
    # Draws are unlimited, so there is nothing to stop early for.
    schedule = Schedule(options.steps, options.learning_rate or LEARNING_RATE, patience=None)
    try:
        head, history = train(
            train_key, head, loss, validate, (model, control, pool, kernels(held_key, pool, 8192)), schedule,
            stage="divergence", progress=progress,
        )  # fmt: skip
    except TrainingDiverged as error:
        error.best = FlowDensity(model, divergence=SteinDivergence(error.best))
        raise
    started = time.monotonic()
    # About rows that it was trained on a velocity is not what it is elsewhere: they are left out here.
    head = calibrate(head, model, control, kernels(calibrate_key, own, CALIBRATION, tails=0.0))
    residuals = stein_residuals(head, model, control, kernels(check_key, own, CALIBRATION, tails=0.0))
    seconds |= {"divergence": history.seconds, "calibration": time.monotonic() - started}
    return SteinDivergence(head), FitReport({"divergence": history}, seconds, residuals)


@eqx.filter_jit
def _new_head(key: Key, model: Flow, kernels: Kernel) -> DivergenceHead:
    """A head on the features of `model`, with its scale and bound read off the targets it will be trained on."""
    one = jax.tree.map(lambda leaf: leaf[0], kernels)
    _, hidden = model.features(one.time, one.centre, one.context)
    assert hidden is not None, "a trained model has hidden features"
    unit = jnp.ones(())
    width = min(128, hidden.size)  # no wider than the trunk it reads
    head = DivergenceHead(key, model.dim, hidden.size, reach=model.reach, scale=unit, bound=unit, width=width)
    none = MeanJacobian(model.times(1), jnp.zeros((2, model.dim, model.dim)))
    targets = jax.vmap(lambda kernel: stein_terms(head, model, none, kernel).target)(kernels)
    # A flow that stayed at the fitted Gaussian has no divergence at all; the floors keep ratios finite.
    scale = jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(targets))), 1e-6)
    bound = jnp.maximum(jnp.max(jnp.abs(targets)), 1e-6)
    return eqx.tree_at(lambda h: (h.scale, h.bound), head, (scale, bound))


def _push(model: Flow, noise: Rows, contexts: Rows) -> Rows:
    """Whitened events, shape `(rows, dim)`, that the flow carries `noise` to, given whitened contexts."""
    solver = FixedStep(8)  # centres may have any distribution: coarse steps do no harm
    return jax.lax.map(
        lambda row: solver.integrate(lambda s, y: model.velocity(s, y, row[1]), model.times, row[0], reverse=False),
        (noise, contexts),
        batch_size=1000,
    )


@eqx.filter_jit
def _model_samples(key: Key, model: Flow, table: Sample) -> Sample:
    """Samples of the model at contexts from the table."""
    rows, noise = jr.split(key)
    contexts = table.draw(rows, POOL).contexts
    return Sample(_push(model, jr.normal(noise, (POOL, model.dim)), contexts), contexts)
