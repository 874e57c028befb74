"""Training a network as the departure from a reference: the fitted Gaussian or a mixture."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from .._typing import Array, Float, Key
from ..data.statistics import mean_and_error, shares
from ..models.flows import GaussianFlow, with_reference
from ..references.choice import ReferenceChoice, choose_reference
from ..references.fit import fit_reference
from .folds import Folds, HeldRows, Trainer, held_log_likelihoods, last_of, one_of, stack
from .loop import History
from .losses import MatchingDraws, Sample
from .results import activity, final, relay

MAX_SCORED_ROWS = 1024
"""Maximum number of held-out rows of all folds together whose likelihood is computed at once."""
COMPARISON_PROBES = 64
"""Probes of the divergence in comparisons of models, where one would add more noise than the rows have."""
STARTS = 4
"""Starts of the mixture that was chosen: one alone may end in a poor local maximum, however good the candidate was."""

Pair = tuple[Sample, Sample]
"""Rows to train on, and rows held out."""
Departure = tuple[GaussianFlow, History, ReferenceChoice | None]
"""A model, its losses, and how its reference was chosen, if it was."""


class Keys(NamedTuple):
    """JAX PRNG keys: for the order of the rows, the held-out rows, the training and the reference."""

    order: Key
    held: Key
    train: Key
    reference: Key


class Untrained(NamedTuple):
    """Models at their references, stacked: one for each fold and, in a cross-validation, one more for all rows.

    Attributes:
        models: each at the reference that was fitted to its own rows.
        scores: log densities of the scored rows under the references of their folds, in nats, shape `(folds, rows)`.
    """

    models: GaussianFlow
    scores: np.ndarray


class Run(NamedTuple):
    """The training from one reference: the models before, those of the folds after it, and their losses."""

    untrained: Untrained
    trained: GaussianFlow
    history: History


def fit_departure(
    keys: Keys,
    model: GaussianFlow,
    table: Sample,
    pairs: Sequence[Pair],
    draws: MatchingDraws | None,
    trainer: Trainer,
    *,
    stage: str,
) -> Iterator[Departure]:
    """Train from the fitted Gaussian, and again from a mixture if held-out rows are likelier under it than under the result.

    Where a mixture is nearly the truth, a network has little to add to it. Anywhere else a network gets further from one
    Gaussian: what a mixture of many narrow components has wrong, a network hardly learns to undo. The untrained mixture and the
    flow trained from the Gaussian are compared by the likelihood of held-out rows, and the lead must exceed its standard error,
    since a mixture also makes every evaluation of the velocity slower. A mixture, and of few rows any reference, is left
    untrained unless held-out rows gain more than their standard error by training.

    Args:
        keys: of each part of the work.
        model: at the fitted Gaussian.
        table: whitened events and contexts.
        pairs: the folds, all of one size.
        draws: matching draws of the folds, by whose loss they are judged in training. None is for few rows: the folds are judged
            by the likelihood of their held-out rows, and one more model is trained beside them, on all rows.
        trainer: what the runs have in common.
        stage: name of this stage.

    Yields:
        The best model so far, its losses, and how its reference was chosen, if it was.
    """
    began = time.monotonic()
    held_keys = jr.split(keys.held, len(pairs))
    some = [some_of(key, out, MAX_SCORED_ROWS // len(pairs)) for key, (_, out) in zip(held_keys, pairs, strict=True)]
    scored = HeldRows(stack(some), held_keys)
    # One thread: a sum in another order has other last digits, and a fit that resumes must find the same reference.
    with threadpool_limits(limits=1):
        choice = choose_reference(keys.reference, model.scaling, table, folds=len(pairs), progress=trainer.progress)
        mixture = _mixture(choice, model, table, pairs, scored.sample)
    if trainer.checkpoint is not None:
        trainer = trainer._replace(checkpoint=trainer.checkpoint.narrowed(mixture))
    seconds = time.monotonic() - began
    kept, judged = training_rows(table, pairs), scored if draws is None else draws
    normal = norm.logpdf(np.asarray(scored.sample.states, np.float64)).sum(axis=-1)
    gaussian = Untrained(stack([model] * len(kept.states)), normal)
    plain = choice and dataclasses.replace(choice, components=None, floor=0.0)
    own: Float[Array, "folds rows"] | None = None
    results = trainer.run(keys.train, Folds(gaussian.models, kept, judged), stage)
    run = Run(gaussian, *(yield from relay(results, lambda run: (last_of(run[0]), run[1], plain))))
    seconds += run.history.seconds
    if choice is not None and mixture is not None:
        with activity("comparison with a mixture", trainer.progress):
            own = held_log_likelihoods(run.trained, scored, COMPARISON_PROBES)
            lead = gain_of(mixture.scores - own, scored.sample)
        choice = dataclasses.replace(choice, lead=lead)
        if is_clear(lead):
            folds = Folds(mixture.models, kept, judged)
            run, own = Run(mixture, *final(trainer.run(keys.train, folds, f"{stage}, from a mixture"))), None
            seconds += run.history.seconds
        else:
            choice = dataclasses.replace(choice, components=None, floor=0.0)
    history = dataclasses.replace(run.history, seconds=seconds)
    if draws is None or run.untrained is mixture:
        with activity("comparison with the reference", trainer.progress):
            if own is None:
                own = held_log_likelihoods(run.trained, scored, COMPARISON_PROBES)
            gain = gain_of(own - run.untrained.scores, scored.sample)
        history = dataclasses.replace(history, gain=gain if draws is None else None)
        # At step 0 the gain is what the solver rounds.
        if history.best_step == 0 or not is_clear(gain):
            yield last_of(run.untrained.models), dataclasses.replace(history, best_step=0), choice
            return
    yield last_of(run.trained), history, choice


def training_rows(table: Sample, pairs: Sequence[Pair]) -> Sample:
    """The rows that each model is trained on, folds leading: those of the fold and, in a cross-validation, last all rows.

    All have the same shape: what a fold holds out is there with weight zero.
    """
    if len(pairs) == 1:
        return stack([pairs[0][0]])

    def joined(kept: Sample, out: Sample) -> Sample:
        ones = jnp.ones(len(kept.states)) if kept.weights is None else kept.weights
        weights = jnp.concatenate([ones, jnp.zeros(len(out.states))])
        states, contexts = (jnp.concatenate(parts) for parts in zip(kept[:2], out[:2], strict=True))
        return Sample(states, contexts, weights)

    every = jnp.ones(len(table.states)) if table.weights is None else table.weights
    return stack([*(joined(*pair) for pair in pairs), table._replace(weights=every)])


def is_clear(gain: tuple[float, float]) -> bool:
    """Whether a gain exceeds its standard error."""
    return gain[0] > gain[1]


def gain_of(above: Float[Array, "folds rows"] | np.ndarray, held: Sample) -> tuple[float, float]:
    """Mean of a difference of log densities over held-out rows, in nats, and its standard error."""
    share = shares(None if held.weights is None else np.asarray(held.weights, np.float64).ravel(), np.size(above))
    _, kind = held.kinds()
    return mean_and_error(np.asarray(above, np.float64).ravel(), share, kind)


def some_of(key: Key, part: Sample, most: int) -> Sample:
    """The rows of a part that are scored: all, or at most `most` that represent them."""
    if len(part.states) <= most:
        return part
    if part.weights is None:
        return part.take(jnp.arange(most))
    return part.draw(key, most)._replace(weights=jnp.full(most, jnp.sum(part.weights) / most))


def _mixture(
    choice: ReferenceChoice | None, model: GaussianFlow, table: Sample, pairs: Sequence[Pair], scored: Sample
) -> Untrained | None:
    """Models at the mixture that was chosen, fitted to the rows of each; None for the fitted Gaussian."""
    if choice is None or choice.components is None:
        return None
    fit = partial(fit_reference, components=choice.components, floor=choice.floor, starts=STARTS)
    fitted = [fit(kept) for kept, _ in pairs]
    scores = np.stack([each.log_densities(one_of(scored, number)) for number, each in enumerate(fitted)])
    every = fitted if len(pairs) == 1 else [*fitted, fit(table)]
    return Untrained(stack([with_reference(model, each.reference()) for each in every]), scores)
