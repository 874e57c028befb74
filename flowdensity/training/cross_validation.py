"""Fitting the velocity to few rows: several networks, each judged by the likelihood of the rows it has not seen."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from threadpoolctl import threadpool_limits

from .._typing import Array, Float, Key
from ..data.statistics import mean_and_error, shares
from ..models.flows import GaussianFlow, with_reference
from .folds import Folds, HeldRows, Trainer, first, held_log_likelihoods, stack
from .loop import History
from .losses import Sample
from .reference import ReferenceChoice, choose_reference, fit_reference, whiten_again
from .results import activity, final, relay
from .splits import kinds

MAX_SCORED_ROWS = 1024
"""Maximum number of held-out rows of all folds together that are scored at each validation."""

Pair = tuple[Sample, Sample]
"""Rows to train on, and rows held out."""


class Keys(NamedTuple):
    """JAX PRNG keys: for the order of the rows, the scored rows, the training, the run on all rows, and the reference."""

    order: Key
    held: Key
    train: Key
    everything: Key
    reference: Key


class Untrained(NamedTuple):
    """A model at its reference, and one for each fold, whose reference was fitted to the rows of that fold only."""

    model: GaussianFlow
    folds: list[GaussianFlow]


class Run(NamedTuple):
    """The training from one reference: the model for all rows, the models of the folds before and after, and their losses."""

    model: GaussianFlow
    untrained: GaussianFlow
    trained: GaussianFlow
    history: History


def cross_validate(
    keys: Keys, model: GaussianFlow, table: Sample, pairs: Sequence[Pair], trainer: Trainer, *, stage: str
) -> Iterator[tuple[GaussianFlow, History, ReferenceChoice | None]]:
    """Train a network for each fold, from each reference, and then one on all rows for as many steps as did best.

    If the gain in likelihood over the reference is within its standard error, the reference is returned untrained.

    Args:
        keys: of each part of the work.
        model: at the fitted Gaussian.
        table: whitened events and contexts.
        pairs: the folds, all of one size.
        trainer: what the runs have in common.
        stage: name of this stage.

    Yields:
        The best model so far, the losses of the cross-validation, and how its reference was chosen, if it was. Until the last run
        is done, the model is that of the first fold, which has not seen one part of the rows.
    """
    began = time.monotonic()
    # One thread: a sum in another order has other last digits, and a fit that resumes must find the same reference.
    with threadpool_limits(limits=1):
        pairs = [whiten_again(model.scaling, *pair) for pair in pairs]
        choice, references = _references(keys.reference, model, table, [kept for kept, _ in pairs], trainer.progress)
    if trainer.checkpoint is not None:
        trainer = trainer._replace(checkpoint=trainer.checkpoint.narrowed(references))
    seconds = time.monotonic() - began
    held_keys = jr.split(keys.held, len(pairs))
    some = [some_of(key, out, MAX_SCORED_ROWS // len(pairs)) for key, (_, out) in zip(held_keys, pairs, strict=True)]
    kept, judged = stack([kept for kept, _ in pairs]), HeldRows(stack(some), held_keys)
    runs: list[Run] = []
    for reference in references:
        untrained = stack(reference.folds)
        folds = Folds(untrained, kept, judged)
        if runs:
            trained, history = final(trainer.run(keys.train, folds, f"{stage}, from one Gaussian"))
        else:
            trained, history = yield from relay(
                trainer.run(keys.train, folds, stage), lambda run: (first(run[0]), run[1], choice)
            )
        runs.append(Run(reference.model, untrained, trained, history))
    with activity("comparison with the reference", trainer.progress):
        best, is_better, choice = _compare(runs, judged, choice)
    history = dataclasses.replace(best.history, seconds=seconds + sum(run.history.seconds for run in runs))
    if not is_better:
        yield best.model, dataclasses.replace(history, best_step=0), choice
        return
    yield first(best.trained), history, choice
    everything = table.take(jr.permutation(keys.order, len(table.states))[None])
    # Nothing is held out from the last run: what is reported is the cross-validation.
    one_fold = jax.tree.map(lambda leaf: leaf[:1], judged._replace(sample=judged.sample._replace(weights=None)))
    schedule = dataclasses.replace(trainer.schedule, patience=None, stop=history.best_step)
    folds = Folds(stack([best.model]), everything, one_fold)
    trained, last = final(trainer._replace(schedule=schedule).run(keys.everything, folds, f"{stage}, all rows"))
    yield first(trained), dataclasses.replace(history, seconds=history.seconds + last.seconds), choice


def furthest(gains: Sequence[tuple[float, float]]) -> int | None:
    """Which of several gains, each with its standard error, is the largest; None if none is above its error."""
    worth = [(gain, number) for number, (gain, error) in enumerate(gains) if gain > error]
    return max(worth)[1] if worth else None


def gain_of(above: Float[Array, "folds rows"], held: Sample) -> tuple[float, float]:
    """By how much held-out rows are likelier, given how much each is: their mean in nats, and its standard error."""
    share = shares(None if held.weights is None else np.asarray(held.weights, np.float64).ravel(), above.size)
    _, kind = kinds(held)
    return mean_and_error(np.asarray(above, np.float64).ravel(), share, kind)


def some_of(key: Key, part: Sample, most: int) -> Sample:
    """The rows of a part that are judged: all, or where they are many so many, which stand for all."""
    if len(part.states) <= most:
        return part
    if part.weights is None:
        return part.take(jnp.arange(most))
    return part.draw(key, most)._replace(weights=jnp.full(most, jnp.sum(part.weights) / most))


def _references(
    key: Key, model: GaussianFlow, table: Sample, kept: Sequence[Sample], progress: bool
) -> tuple[ReferenceChoice | None, list[Untrained]]:
    """The fitted Gaussian, and before it a mixture of Gaussians where held-out rows are likelier under one."""
    references = [Untrained(model, [model] * len(kept))]
    # A mixture knows of no context.
    choice = None if table.contexts.shape[1] else choose_reference(key, model.scaling, table, progress=progress)
    if choice is not None and choice.components > 1:
        mixtures = [with_reference(model, fit_reference(rows, choice)) for rows in kept]
        references.insert(0, Untrained(with_reference(model, fit_reference(table, choice)), mixtures))
    return choice, references


def _compare(
    runs: Sequence[Run], judged: HeldRows, choice: ReferenceChoice | None
) -> tuple[Run, bool, ReferenceChoice | None]:
    """The run under whose networks held-out rows are likeliest, whether they gain enough, and what that says of the reference."""
    before = [held_log_likelihoods(run.untrained, judged) for run in runs]
    after = [held_log_likelihoods(run.trained, judged) for run in runs]
    taken = furthest([gain_of(each - before[0], judged.sample) for each in after])
    number = taken or 0
    history = dataclasses.replace(runs[number].history, gain=gain_of(after[number] - before[number], judged.sample))
    if choice is not None and len(runs) > 1:
        choice = dataclasses.replace(choice, lead=gain_of(after[0] - after[1], judged.sample))
        choice = choice if number == 0 else dataclasses.replace(choice, components=1, floor=0.0)
    return runs[number]._replace(history=history), taken is not None, choice
