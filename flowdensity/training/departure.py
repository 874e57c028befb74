"""Training a network as the departure of a velocity from a reference: the fitted Gaussian or a mixture of Gaussians."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from .._typing import Array, Float, Key
from ..data.statistics import mean_and_error, shares
from ..models.flows import AbstractProbabilityFlow, GaussianFlow, with_reference
from ..references.choice import ReferenceChoice, choose_reference
from ..references.fit import fit_reference
from ..solving import FixedStep
from .folds import Folds, HeldRows, Trainer, at, held_log_likelihoods, last_of, stack
from .loop import History
from .losses import MatchingDraws, Sample
from .results import activity, final, relay

MAX_SCORED_ROWS = 1024
"""Maximum number of held-out rows, over all folds, whose likelihood is computed at once."""
COMPARISON_PROBES = 64
"""Number of probes of the divergence in model comparisons, since a single probe would add more noise than the rows have."""
NUM_TESTED_ROWS = 64
"""Number of states at which the velocity of a model is compared with that of its reference."""
COMPARISON_SOLVER = FixedStep(16)
"""Solver in model comparisons, the default of a density."""
STARTS = 4
"""Number of random starts for the chosen mixture, since a single start may end in a poor local maximum for any candidate."""

Pair = tuple[Sample, Sample]
"""Training rows and held-out rows."""
Departure = tuple[GaussianFlow, History, ReferenceChoice | None]
"""A model, its losses, and the choice of its reference (None if there was no choice)."""


class Keys(NamedTuple):
    """JAX PRNG keys for the order of the rows, the held-out rows, the training and the reference."""

    order: Key
    held: Key
    train: Key
    reference: Key


class Untrained(NamedTuple):
    """Stacked untrained models at their references: one for each fold and, in a cross-validation, one more for all rows.

    Attributes:
        models: models at the references that were fitted to their own rows.
        scores: log densities of the scored rows under the references of their folds, in nats, shape `(folds, rows)`.
    """

    models: GaussianFlow
    scores: np.ndarray


class Run(NamedTuple):
    """Training run from one reference: the untrained models, the trained models and their losses."""

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
    """Train from the fitted Gaussian, and again from a mixture if held-out rows are more likely under it than under the result.

    If a mixture is close to the true density, a network has little to add. Otherwise a network improves more on a single
    Gaussian, because it can hardly undo the errors of a mixture of many narrow components. The untrained mixture and the flow
    trained from the Gaussian are therefore compared by the likelihood of held-out rows. The mixture must lead by more than the
    standard error, since it also makes every evaluation of the velocity slower. A mixture, and with few rows any reference, is
    returned untrained unless training improves the likelihood of held-out rows by more than its standard error.

    Args:
        keys: a key for each part of the work.
        model: a model whose velocity is that of the fitted Gaussian.
        table: whitened events and contexts.
        pairs: the folds, all of the same size.
        draws: matching draws of the folds, whose loss is the validation loss. None if there are few rows: the validation loss
            is then the likelihood of held-out rows, and one more model is trained beside them, on all rows.
        trainer: settings that the runs share.
        stage: name of this stage.

    Yields:
        The best model so far, its losses, and the choice of its reference (None if there was no choice).
    """
    began = time.monotonic()
    held_keys = jr.split(keys.held, len(pairs))
    some = [some_of(key, out, MAX_SCORED_ROWS // len(pairs)) for key, (_, out) in zip(held_keys, pairs, strict=True)]
    scored = HeldRows(stack(some), held_keys)
    # With more threads, sums have another order and other last digits. A fit that resumes must choose the same reference.
    with threadpool_limits(limits=1), activity("choice of the reference", trainer.progress):
        choice = choose_reference(keys.reference, model.scaling, seen_by_reference(model, table), folds=len(pairs))
        mixture = _mixture(choice, model, table, pairs, scored.sample)
    if trainer.checkpoint is not None:
        trainer = trainer._replace(checkpoint=trainer.checkpoint.narrowed(mixture))
    seconds = time.monotonic() - began
    kept, judged = training_rows(table, pairs), scored if draws is None else draws
    normal = norm.logpdf(np.asarray(scored.sample.states, np.float64)).sum(axis=-1)
    gaussian = Untrained(stack([model] * len(kept.states)), normal)
    plain = choice and dataclasses.replace(choice, components=None, floor=0.0)
    own: np.ndarray | None = None
    results = trainer.run(keys.train, Folds(gaussian.models, kept, judged), stage)
    run = Run(gaussian, *(yield from relay(results, lambda run: (last_of(run[0]), run[1], plain))))
    seconds += run.history.seconds
    if choice is not None and mixture is not None:
        with activity("comparison with a mixture", trainer.progress):
            own = scored_as_flows(run.trained, scored)
            lead = gain_of(mixture.scores - own, scored.sample)
            if is_clear(lead):
                # Where contexts are squashed or the solver is too coarse, the flow of a mixture is not its closed form.
                mixture = mixture._replace(scores=scored_as_flows(mixture.models, scored))
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
                own = scored_as_flows(run.trained, scored)
            # At step 0 the difference is only the rounding error of the solver.
            untrained = history.best_step == 0
            gain = (0.0, 0.0) if untrained else gain_of(own - run.untrained.scores, scored.sample)
        history = dataclasses.replace(history, gain=gain if draws is None else None)
        if not is_clear(gain):
            yield last_of(run.untrained.models), dataclasses.replace(history, best_step=0), choice
            return
    yield last_of(run.trained), history, choice


def training_rows(table: Sample, pairs: Sequence[Pair]) -> Sample:
    """Rows that each model is trained on, with a leading axis for folds. In a cross-validation the last entry has all rows.

    All entries have the same shape: the held-out rows of a fold are included with weight zero.
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


def departs(model: AbstractProbabilityFlow, some: Sample) -> bool:
    """Whether the network of a model adds anything to the reference velocity at the first of some whitened states."""
    few = some.take(jnp.arange(min(NUM_TESTED_ROWS, len(some.states))))
    return bool(jnp.any(_network_velocities(model, few) != 0.0))


@eqx.filter_jit
def _network_velocities(model: AbstractProbabilityFlow, some: Sample) -> Float[Array, "rows dim"]:
    first, last = model.times(1)
    times = jnp.linspace(first, last, len(some.states))
    return jax.vmap(lambda t, y, c: model.network_velocity(t, y, c)[0])(times, some.states, some.contexts)


def scored_as_flows(models: GaussianFlow, scored: HeldRows) -> np.ndarray:
    """Log densities of the scored rows, each under the flow of its fold, in nats, shape `(folds, rows)`."""
    return np.asarray(held_log_likelihoods(models, scored, COMPARISON_PROBES, COMPARISON_SOLVER), np.float64)


def seen_by_reference(model: GaussianFlow, part: Sample) -> Sample:
    """Rows with the part of their contexts that the reference depends on, which are the fixed summaries if there are encoders."""
    return part._replace(contexts=part.contexts[..., : model.network.reference_dim])


def is_clear(gain: tuple[float, float]) -> bool:
    """Whether a gain exceeds its standard error."""
    return gain[0] > gain[1]


def gain_of(above: np.ndarray, held: Sample) -> tuple[float, float]:
    """Mean of a difference of log densities over held-out rows, in nats, and its standard error."""
    share = shares(None if held.weights is None else np.asarray(held.weights, np.float64).ravel(), np.size(above))
    _, kind = held.kinds()
    return mean_and_error(above.ravel(), share, kind)


def some_of(key: Key, part: Sample, most: int) -> Sample:
    """Rows of a part that are scored: all rows, or at most `most` that represent them."""
    if len(part.states) <= most:
        return part
    if part.weights is None:
        return part.take(jnp.arange(most))
    return part.draw(key, most)._replace(weights=jnp.full(most, jnp.sum(part.weights) / most))


def _mixture(
    choice: ReferenceChoice | None, model: GaussianFlow, table: Sample, pairs: Sequence[Pair], scored: Sample
) -> Untrained | None:
    """Models at the chosen mixture, fitted to the rows of each model; None if the fitted Gaussian was chosen."""
    if choice is None or choice.components is None:
        return None
    fit = partial(fit_reference, components=choice.components, floor=choice.floor, starts=STARTS)
    tables = [seen_by_reference(model, kept) for kept, _ in pairs]
    if len(pairs) > 1:
        tables.append(seen_by_reference(model, table))
    fitted = [fit(each) for each in tables]
    # A rare value of a context may be missing from a fold, but all models need the same shapes.
    fewest = min(each.directions for each in fitted)
    fitted = [
        one if one.directions == fewest else fit(each, directions=fewest)
        for one, each in zip(fitted, tables, strict=True)
    ]
    held = seen_by_reference(model, scored)
    scores = np.stack([fitted[fold].log_densities(at(held, fold)) for fold in range(len(pairs))])
    return Untrained(stack([with_reference(model, each.reference()) for each in fitted]), scores)
