"""Fitting the velocity of a model on the circle: one split into training and held-out rows, or several."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from threadpoolctl import threadpool_limits

from .._typing import Key, Scalar
from ..models.flows import AbstractCircle, Diffusion, Flow, Started, with_network, with_start
from ..models.networks import AbstractNetwork
from .checkpoints import Checkpoint
from .loop import History, Schedule, TrainingDiverged, train
from .losses import MatchingDraws, Sample, draw_matching, matching_loss
from .options import SMALL, Options, held_out
from .start import FOLDS, StartChoice, choose_start, fit_start, whiten_again

Inputs: TypeAlias = tuple[Flow | Diffusion, Sample, MatchingDraws]
"""What the losses are handed, folds leading: the models, the rows to train on and draws from the rows held out."""


def fit_velocity(
    key: Key,
    model: Started,
    table: Sample,
    options: Options,
    validation: float,
    *,
    stage: str,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> tuple[Started, History, StartChoice | None]:
    """Minimise the matching loss of `model` over a whitened table, stopping early on held-out rows.

    From 2,000 rows on, the weights kept are those that did best on one held-out part. Below, one part is too few rows to
    tell: five networks, each with another part held out, are trained side by side, and what is kept of them is the step
    at which their mean held-out loss was least. The model is then trained on all rows for as many steps. Each starts at a
    mixture of Gaussians, fitted to its own rows, if held-out rows are likelier under such a mixture (`choose_start`); with
    contexts they start at the fitted Gaussian.

    Args:
        key: JAX PRNG key.
        model: at the fitted Gaussian.
        table: whitened events and contexts.
        options: checked options.
        validation: fraction of the rows in a held-out part.
        stage: name of this stage.
        progress: whether to show bars.
        checkpoint: where to keep what has been done.

    Returns:
        The model, its losses, those of the cross-validation where there was one, and how its start was chosen, if it was.

    Raises:
        TrainingDiverged: with the best model until then in its `best`.
    """
    rows = len(table.states)
    small = table.effective < SMALL
    split_key, held_key, train_key, final_key, start_key = jr.split(key, 5)
    held = held_out(rows, validation)
    folds = min(FOLDS, rows // held) if small and table.effective >= 20 else 1  # fewer cannot be whitened fold by fold
    order = jr.permutation(split_key, rows)
    splits = [(part[held:], part[:held]) for part in (jnp.roll(order, -fold * held) for fold in range(folds))]
    pairs = [(table.take(kept), table.take(out)) for kept, out in splits]
    choice, models, began = None, [model] * folds, time.monotonic()
    if folds > 1:
        # One thread: a sum in another order has other last digits, and a fit that goes on has to find the same start.
        with threadpool_limits(limits=1):
            pairs = [whiten_again(model.scaling, *pair) for pair in pairs]
            # A mixture knows of no context.
            if not table.contexts.shape[1]:
                choice = choose_start(start_key, model.scaling, table, progress=progress)
            if choice is not None:
                models = [with_start(model, fit_start(kept, choice)) for kept, _ in pairs]
                model = with_start(model, fit_start(table, choice))
        if checkpoint is not None:
            checkpoint = checkpoint.narrowed(models, model)
    preparation = time.monotonic() - began
    kept_rows, held_rows = (_stack(side) for side in zip(*pairs, strict=True))
    # All evaluations together so take a few times as many draws as training, in a short fit of a dear network too.
    draws = min(max(8192, 2 * held), max(2048, options.steps * options.batch_size // 16)) // folds
    held_draws = eqx.filter_vmap(lambda k, sample: draw_matching(k, sample, model, draws))(
        jr.split(held_key, folds), held_rows
    )
    schedule = Schedule(
        options.steps,
        options.learning_rate or (3e-4 if small else 1e-3),
        patience=max(1000, options.steps * 3 // 10),
    )

    def loss(networks: AbstractNetwork, key: Key, args: Inputs) -> Scalar:
        models, kept, _ = args

        def one(model: AbstractCircle, key: Key, sample: Sample) -> Scalar:
            return matching_loss(model, draw_matching(key, sample, model, options.batch_size))

        return _mean_over_folds(one, with_network(models, networks), jr.split(key, len(kept.states)), kept)

    def validate(networks: AbstractNetwork, args: Inputs) -> Scalar:
        models, _, held = args
        return _mean_over_folds(matching_loss, with_network(models, networks), held)

    def run(
        key: Key, models: list[Started], kept: Sample, draws: MatchingDraws, schedule: Schedule, name: str
    ) -> tuple[Started, History]:
        stacked = _stack(models)
        try:
            networks, history = train(
                key, stacked.network, loss, validate, (stacked, kept, draws), schedule,
                stage=name, progress=progress, checkpoint=checkpoint,
            )  # fmt: skip
        except TrainingDiverged as error:
            error.best = with_network(models[0], _first(error.best))
            raise
        return with_network(models[0], _first(networks)), history

    best, history = run(train_key, models, kept_rows, held_draws, schedule, stage)
    history.seconds += preparation
    if folds == 1 or history.interrupted:
        return best, history, choice
    if history.best_step == 0:
        history.stopped = "no step did better on held-out rows than the start, which is kept"
        return model, history, choice
    everything = table.take(order[None])
    final = dataclasses.replace(schedule, patience=None, stop=history.best_step)
    # Nothing is held out from the last run: what is reported is the cross-validation.
    one_fold = jax.tree.map(lambda leaf: leaf[:1], held_draws)
    best, last = run(final_key, [model], everything, one_fold, final, f"{stage}, all rows")
    history.seconds += last.seconds
    history.interrupted = last.interrupted
    return best, history, choice


def _stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, with a leading axis on the arrays."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)


def _first(stacked: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, stacked)


def _mean_over_folds(function: Callable[..., Scalar], *args: Any) -> Scalar:
    return jnp.mean(eqx.filter_vmap(function)(*args))
