"""Fitting the velocity of a model on a Gaussian probability path, with cross-validation if there are few rows."""

from collections.abc import Iterator

import equinox as eqx
import jax.random as jr
from threadpoolctl import threadpool_limits

from .._typing import Key
from ..models.flows import AbstractGaussianFlow, GaussianFlow
from ..references.choice import NUM_FOLDS, whiten_again
from .checkpoints import Checkpoint
from .departure import Departure, Keys, fit_departure
from .folds import Trainer, stack
from .loop import Schedule
from .losses import LIKELIHOOD_SHARE, MatchingDraws, Sample, draw_matching
from .splits import splits
from .training import FEW_DIMENSIONS, FEW_ROWS, Plan, Training, held_out

MIN_ROWS_FOR_FOLDS = 20
"""Below this number of rows the parts of a cross-validation are too small to be whitened."""
TOLERANCE = 2.0
"""The last weights may have a larger matching loss on held-out rows than the best ones, by this many standard errors. Where the
network memorizes rows, the difference is much larger."""


def fit_velocity(
    key: Key,
    model: GaussianFlow,
    table: Sample,
    training: Training,
    *,
    stage: str,
    progress: bool,
    checkpoint: Checkpoint | None,
) -> Iterator[Departure]:
    """Minimize the matching loss of `model` over a whitened table, with early stopping on held-out rows.

    With at least 2,000 rows, the result has the last weights, or those with the smallest matching loss on one held-out part if
    that loss is clearly smaller. With fewer rows,
    one part is too small and its matching loss too noisy. In that case five networks, each with a different part held out, and
    one network on all rows are trained side by side. The five are scored by the likelihood of their held-out rows, and the
    result is the network on all rows at the step where they score best. If the gain in likelihood over the reference does not
    exceed its standard error, the untrained reference is returned.

    The reference is the fitted Gaussian, or a mixture of Gaussians (`fit_departure`).

    Args:
        key: JAX PRNG key.
        model: a model whose velocity is that of the fitted Gaussian.
        table: whitened events and contexts.
        training: training options.
        stage: name of this stage.
        progress: whether to show bars.
        checkpoint: where to save the state.

    Yields:
        The best model so far, its losses, and the choice of its reference (None if there was no choice).
    """
    rows, small = len(table.states), table.effective < FEW_ROWS
    plan = default_plan(training, table.effective, model.dim)
    keys, held = Keys(*jr.split(key, 4)), held_out(rows, plan.validation)
    folds = min(NUM_FOLDS, rows // held) if small and table.effective >= MIN_ROWS_FOR_FOLDS else 1
    pairs = [(table.take(kept), table.take(out)) for kept, out in splits(keys.order, table, held, folds)]
    schedule = Schedule(
        plan.steps,
        plan.learning_rate,
        patience=max(1000, plan.steps * 3 // 10),
        optimizer=plan.optimizer,
        tolerance=0.0 if small else TOLERANCE,
    )
    trainer = Trainer(schedule, plan.batch_size, likely_share(small, model.dim), progress, checkpoint)
    if folds > 1:
        with threadpool_limits(limits=1):
            pairs = [whiten_again(model.scaling, *pair) for pair in pairs]
        draws = None
    else:
        count = plan.share(50, 256, max(8192, 2 * held))
        draws = _judged_draws(jr.split(keys.held, 1), stack([pairs[0][1]]), model, count, trainer.likely)
    yield from fit_departure(keys, model, table, pairs, draws, trainer, stage=stage)


@eqx.filter_jit
def _judged_draws(keys: Key, held: Sample, model: AbstractGaussianFlow, count: int, likely: float) -> MatchingDraws:
    """Fixed draws from the held-out rows of each fold, on which matching losses are compared."""
    return eqx.filter_vmap(lambda key, sample: draw_matching(key, sample, model, count, likely))(keys, held)


def default_plan(training: Training, rows: float, dim: int) -> Plan:
    """Default options of this stage for a number of rows and dimensions.

    With few rows, a high learning rate makes the network memorize them. In few dimensions it mainly has to learn sharp edges,
    and a high learning rate is best for these.
    """
    if rows < FEW_ROWS:
        return training.plan(steps=4000, batch_size=128, learning_rate=6e-4)
    if dim <= FEW_DIMENSIONS:
        return training.plan(steps=4000, batch_size=256, learning_rate=4e-3)
    return training.plan(steps=6000, batch_size=256, learning_rate=3e-3)


def likely_share(small: bool, dim: int) -> float:
    """Fraction of angles drawn with the likelihood weighting. With many rows in many dimensions, training is better without."""
    return LIKELIHOOD_SHARE if small or dim <= FEW_DIMENSIONS else 0.0
