"""Fitting the velocity of a model on the circle: one split into training and held-out rows, or several."""

import dataclasses
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._typing import Key, Scalar
from ..data.scaling import fit_scaling
from ..models.flows import AbstractCircle, with_network
from ..models.networks import AbstractNetwork
from .checkpoints import Checkpoint
from .loop import History, Schedule, TrainingDiverged, train
from .losses import MatchingDraws, Sample, draw_matching, matching_loss
from .options import SMALL, Options, held_out

FOLDS = 5
Inputs: TypeAlias = tuple[AbstractCircle, Sample, MatchingDraws]
"""What the losses are handed: the model, the rows to train on and draws from the rows held out, folds leading."""


def fit_velocity(
    key: Key,
    model: AbstractCircle,
    table: Sample,
    options: Options,
    validation: float,
    *,
    stage: str,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> tuple[AbstractCircle, History]:
    """Minimise the matching loss of `model` over a whitened table, stopping early on held-out rows.

    From 2,000 rows on, the weights kept are those that did best on one held-out part. Below, one part is too few rows to
    tell: five networks, each with another part held out, are trained side by side, and what is kept of them is the step
    at which their mean held-out loss was least. The model is then trained on all rows for as many steps.

    Args:
        key: JAX PRNG key.
        model: where to start.
        table: whitened events and contexts.
        options: checked options.
        validation: fraction of the rows in a held-out part.
        stage: name of this stage.
        progress: whether to show bars.
        checkpoint: where to keep what has been done.

    Returns:
        The model, and its losses; those of the cross-validation where there was one.

    Raises:
        TrainingDiverged: with the best model until then in its `best`.
    """
    rows = len(table.states)
    small = table.effective < SMALL
    split_key, held_key, train_key, final_key = jr.split(key, 4)
    held = held_out(rows, validation)
    folds = min(FOLDS, rows // held) if small and rows >= 20 else 1  # fewer cannot be whitened fold by fold
    order = jr.permutation(split_key, rows)
    splits = [(part[held:], part[:held]) for part in (jnp.roll(order, -fold * held) for fold in range(folds))]
    pairs = [(table.take(kept), table.take(out)) for kept, out in splits]
    if folds > 1:
        pairs = [_whiten_again(*pair) for pair in pairs]
    kept_rows, held_rows = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *side) for side in zip(*pairs, strict=True))
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
        model, kept, _ = args

        def one(network: AbstractNetwork, key: Key, sample: Sample) -> Scalar:
            return matching_loss(with_network(model, network), draw_matching(key, sample, model, options.batch_size))

        return _mean_over_folds(one, networks, jr.split(key, len(kept.states)), kept)

    def validate(networks: AbstractNetwork, args: Inputs) -> Scalar:
        model, _, held = args
        return _mean_over_folds(lambda network, d: matching_loss(with_network(model, network), d), networks, held)

    def run(
        key: Key, kept: Sample, draws: MatchingDraws, schedule: Schedule, name: str
    ) -> tuple[AbstractCircle, History]:
        try:
            networks, history = train(
                key,
                _repeat(model.network, len(kept.states)),
                loss,
                validate,
                (model, kept, draws),
                schedule,
                stage=name,
                progress=progress,
                checkpoint=checkpoint,
            )
        except TrainingDiverged as error:
            error.best = with_network(model, _fold(error.best, 0))
            raise
        return with_network(model, _fold(networks, 0)), history

    best, history = run(train_key, kept_rows, held_draws, schedule, stage)
    if folds == 1 or history.interrupted:
        return best, history
    if history.best_step == 0:
        history.stopped = "no step did better on held-out rows than the fitted Gaussian, which is kept"
        return model, history
    everything = table.take(order[None])
    final = dataclasses.replace(schedule, patience=None, stop=history.best_step)
    # Nothing is held out from the last run: what is reported is the cross-validation.
    one_fold = jax.tree.map(lambda leaf: leaf[:1], held_draws)
    best, last = run(final_key, everything, one_fold, final, f"{stage}, all rows")
    history.seconds += last.seconds
    history.interrupted = last.interrupted
    return best, history


def _whiten_again(kept: Sample, held: Sample) -> tuple[Sample, Sample]:
    """Whiten both by the kept rows alone: the fitted Gaussian is a rival here, and must not have seen what is held out."""
    weights = None if kept.weights is None else np.asarray(kept.weights / jnp.sum(kept.weights), np.float64)
    scaling, _ = fit_scaling(np.asarray(kept.states, np.float64), weights=weights)
    whiten = jax.vmap(lambda state: scaling.whiten(state)[0])
    return kept._replace(states=whiten(kept.states)), held._replace(states=whiten(held.states))


def _repeat(network: AbstractNetwork, folds: int) -> AbstractNetwork:
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * folds) if eqx.is_array(leaf) else leaf, network)


def _fold(networks: AbstractNetwork, fold: int) -> AbstractNetwork:
    return jax.tree.map(lambda leaf: leaf[fold] if eqx.is_array(leaf) else leaf, networks)


def _mean_over_folds(function: Any, networks: AbstractNetwork, *args: Any) -> Scalar:
    return jnp.mean(eqx.filter_vmap(function)(networks, *args))
