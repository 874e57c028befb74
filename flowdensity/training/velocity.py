"""Fitting the velocity of a model on the circle: one split into training and held-out rows, or several."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from threadpoolctl import threadpool_limits

from .._typing import Array, Float, Key, Scalar
from ..data.weights import mean_and_error, shares
from ..models.flows import AbstractCircle, Diffusion, Flow, Started, with_network, with_start
from ..models.networks import AbstractNetwork
from ..solving import FixedStep
from .checkpoints import Checkpoint
from .likelihood import log_likelihoods
from .loop import History, Schedule, TrainingDiverged, train
from .losses import LIKELY, MatchingDraws, Sample, draw_matching, matching_loss
from .options import SMALL, Options, held_out
from .splits import kinds, splits
from .start import FOLDS, StartChoice, choose_start, fit_start, whiten_again

FEWEST = 20
"""Fewer rows cannot be whitened fold by fold."""
HELD = 1024
"""At most so many rows of all folds together have their likelihood at every validation."""
FEW_DIMENSIONS = 3
"""In up to so many the learning rate is higher, and angles are drawn for the likelihood however many rows there are."""
SOLVER = FixedStep(16)
"""Of that likelihood, which is compared with itself only."""


class HeldRows(NamedTuple):
    """Rows to be judged by their likelihood, and the key of the probes where the divergence takes any."""

    sample: Sample
    key: Key


class Run(NamedTuple, Generic[Started]):
    """What came of one start: the model on all rows there, those of the folds there and trained, and their losses."""

    model: Started
    started: Started
    trained: Started
    history: History


class Inputs(NamedTuple):
    """What the losses are handed, folds leading: the models, the rows to train on and what they are judged by."""

    models: Flow | Diffusion
    kept: Sample
    held: MatchingDraws | HeldRows


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

    From 2,000 rows on, the weights kept are those with the least matching loss on one held-out part. Below, one part is too
    few rows to tell, and that loss too noisy: five networks, each with another part held out, are trained side by side and
    judged by the likelihood of what they have not seen. The model is then trained on all rows for as many steps as did best,
    unless the gain in likelihood over the start is within the standard error of that gain: then it is left there. If held-out
    rows are likelier under a mixture of Gaussians (`choose_start`), the five are trained twice, from such mixtures, each fitted
    to its own rows, and from the fitted Gaussian, and those are taken under which held-out rows are then likelier. With contexts
    they start at the fitted Gaussian.

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
    if table.weights is not None:
        table = table.take(jnp.flatnonzero(table.weights))  # rows of no weight say nothing
    rows = len(table.states)
    small = table.effective < SMALL
    split_key, held_key, train_key, final_key, start_key = jr.split(key, 5)
    held = held_out(rows, validation)
    folds = min(FOLDS, rows // held) if small and table.effective >= FEWEST else 1
    pairs = [(table.take(kept), table.take(out)) for kept, out in splits(split_key, table, held, folds)]
    choice, starts, began = None, [(model, [model] * folds)], time.monotonic()
    if folds > 1:
        # One thread: a sum in another order has other last digits, and a fit that goes on has to find the same start.
        with threadpool_limits(limits=1):
            pairs = [whiten_again(model.scaling, *pair) for pair in pairs]
            # A mixture knows of no context.
            if not table.contexts.shape[1]:
                choice = choose_start(start_key, model.scaling, table, progress=progress)
            if choice is not None and choice.components > 1:
                mixtures = [with_start(model, fit_start(kept, choice)) for kept, _ in pairs]
                starts.insert(0, (with_start(model, fit_start(table, choice)), mixtures))
        if checkpoint is not None:
            checkpoint = checkpoint.narrowed(starts)
    preparation = time.monotonic() - began
    kept_rows, held_rows = (_stack(side) for side in zip(*pairs, strict=True))
    held_keys, likely = jr.split(held_key, folds), likely_share(small, model.dim)
    if folds > 1:
        some = [_some(key, out, HELD // folds) for key, (_, out) in zip(held_keys, pairs, strict=True)]
        judged = HeldRows(_stack(some), held_keys)
    else:
        draws = options.share(50, 256, max(8192, 2 * held))
        judged = eqx.filter_vmap(lambda key, sample: draw_matching(key, sample, model, draws, likely))(
            held_keys, held_rows
        )
    schedule = Schedule(
        options.steps,
        options.learning_rate or default_rate(small, model.dim),
        patience=max(1000, options.steps * 3 // 10),
    )

    def loss(networks: AbstractNetwork, key: Key, args: Inputs) -> Scalar:
        def one(model: AbstractCircle, key: Key, sample: Sample) -> Scalar:
            return matching_loss(model, draw_matching(key, sample, model, options.batch_size, likely))

        keys = jr.split(key, len(args.kept.states))
        return jnp.mean(eqx.filter_vmap(one)(with_network(args.models, networks), keys, args.kept))

    def validate(networks: AbstractNetwork, args: Inputs) -> Scalar:
        models, held = with_network(args.models, networks), args.held
        if isinstance(held, MatchingDraws):
            return jnp.mean(eqx.filter_vmap(matching_loss)(models, held))
        return -jnp.average(_log_likelihoods(models, held), weights=held.sample.weights) / model.dim

    def run(key: Key, args: Inputs, schedule: Schedule, name: str) -> tuple[Any, History]:
        try:
            networks, history = train(
                key, args.models.network, loss, validate, args, schedule,
                stage=name, progress=progress, checkpoint=checkpoint,
            )  # fmt: skip
        except TrainingDiverged as error:
            error.best = _first(with_network(args.models, error.best))
            raise
        return with_network(args.models, networks), history

    runs: list[Run[Started]] = []
    for model, models in starts:
        started, name = _stack(models), f"{stage}, from one Gaussian" if runs else stage
        runs.append(Run(model, started, *run(train_key, Inputs(started, kept_rows, judged), schedule, name)))
        if runs[-1].history.interrupted:
            break
    if isinstance(judged, MatchingDraws):
        return _first(runs[0].trained), runs[0].history, choice
    before = [_log_likelihoods(each.started, judged) for each in runs]
    after = [_log_likelihoods(each.trained, judged) for each in runs]
    taken = furthest([_gain(each - before[0], judged.sample) for each in after])
    number = taken or 0
    best = runs[number]
    history = best.history
    history.seconds = preparation + sum(each.history.seconds for each in runs)
    history.interrupted = runs[-1].history.interrupted
    history.gain = _gain(after[number] - before[number], judged.sample)
    if choice is not None and len(runs) > 1:
        choice = dataclasses.replace(choice, lead=_gain(after[0] - after[1], judged.sample))
        choice = choice if number == 0 else dataclasses.replace(choice, components=1, floor=0.0)
    if taken is None:
        history.best_step = 0
        history.stopped += "; held-out rows do not gain enough to leave the start, which is kept"
        return best.model, history, choice
    if history.interrupted:
        return _first(best.trained), history, choice
    everything = table.take(jr.permutation(split_key, rows)[None])
    final = dataclasses.replace(schedule, patience=None, stop=history.best_step)
    # Nothing is held out from the last run: what is reported is the cross-validation.
    one_fold = jax.tree.map(lambda leaf: leaf[:1], judged._replace(sample=judged.sample._replace(weights=None)))
    trained, last = run(final_key, Inputs(_stack([best.model]), everything, one_fold), final, f"{stage}, all rows")
    history.seconds += last.seconds
    history.interrupted = last.interrupted
    return _first(trained), history, choice


def default_rate(small: bool, dim: int) -> float:
    """Peak learning rate: in few dimensions what is left to learn is how sharp edges are, and nothing is learned by heart."""
    return 3e-4 if small else 2e-3 if dim <= FEW_DIMENSIONS else 1e-3


def likely_share(small: bool, dim: int) -> float:
    """Share of the angles that are drawn as the likelihood weighs them: many rows in many dimensions do better without."""
    return LIKELY if small or dim <= FEW_DIMENSIONS else 0.0


def furthest(gains: Sequence[tuple[float, float]]) -> int | None:
    """Which of several gains, each with its standard error, is the largest; None if none is above its error."""
    worth = [(gain, number) for number, (gain, error) in enumerate(gains) if gain > error]
    return max(worth)[1] if worth else None


def _some(key: Key, part: Sample, most: int) -> Sample:
    """The rows of a part that are judged: all, or where they are many so many, which stand for all."""
    if len(part.states) <= most:
        return part
    if part.weights is None:
        return part.take(jnp.arange(most))
    return part.draw(key, most)._replace(weights=jnp.full(most, jnp.sum(part.weights) / most))


@eqx.filter_jit
def _log_likelihoods(models: AbstractCircle, held: HeldRows) -> Float[Array, "folds rows"]:
    """Of held-out rows, each under the model of its fold, in nats."""
    return eqx.filter_vmap(lambda model, rows: log_likelihoods(model, rows.sample, rows.key, SOLVER))(models, held)


def _gain(above: Float[Array, "folds rows"], held: Sample) -> tuple[float, float]:
    """By how much held-out rows are likelier, given how much each is: their mean in nats, and its standard error."""
    share = shares(None if held.weights is None else np.asarray(held.weights, np.float64).ravel(), above.size)
    _, kind = kinds(held)
    return mean_and_error(np.asarray(above, np.float64).ravel(), share, kind)


def _stack(trees: Sequence[Any]) -> Any:
    """Trees of one structure as one, with a leading axis on the arrays."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0], *trees)


def _first(stacked: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0] if eqx.is_array(leaf) else leaf, stacked)
