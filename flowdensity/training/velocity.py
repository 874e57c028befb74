"""Fitting the velocity of a model on the circle: to many rows, or by cross-validation to few."""

from collections.abc import Iterator

import equinox as eqx
import jax.random as jr

from .._typing import Key
from ..models.flows import AbstractCircle, Started
from .checkpoints import Checkpoint
from .cross_validation import Keys, cross_validate
from .folds import Folds, Trainer, first, stack
from .loop import History, Schedule
from .losses import LIKELY, MatchingDraws, Sample, draw_matching
from .options import SMALL, Options, held_out
from .splits import splits
from .start import FOLDS, StartChoice

FEWEST = 20
"""Fewer rows cannot be whitened fold by fold."""
FEW_DIMENSIONS = 3
"""In up to so many the learning rate is higher, and angles are drawn for the likelihood however many rows there are."""


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
) -> Iterator[tuple[Started, History, StartChoice | None]]:
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

    Yields:
        The best model so far, its losses, those of the cross-validation where there is one, and how its start was chosen, if
        it was.
    """
    rows, small = len(table.states), table.effective < SMALL
    keys, held = Keys(*jr.split(key, 5)), held_out(rows, validation)
    folds = min(FOLDS, rows // held) if small and table.effective >= FEWEST else 1
    pairs = [(table.take(kept), table.take(out)) for kept, out in splits(keys.order, table, held, folds)]
    schedule = Schedule(
        options.steps,
        options.learning_rate or default_rate(small, model.dim),
        patience=max(1000, options.steps * 3 // 10),
    )
    trainer = Trainer(schedule, options.batch_size, likely_share(small, model.dim), progress, checkpoint)
    if folds > 1:
        yield from cross_validate(keys, model, table, pairs, trainer, stage=stage)
        return
    kept, out = (stack(side) for side in zip(*pairs, strict=True))
    draws = options.share(50, 256, max(8192, 2 * held))
    judged = _judged_draws(jr.split(keys.held, folds), out, model, draws, trainer.likely)
    for trained, history in trainer.run(keys.train, Folds(stack([model]), kept, judged), stage):
        yield first(trained), history, None


@eqx.filter_jit
def _judged_draws(keys: Key, held: Sample, model: AbstractCircle, count: int, likely: float) -> MatchingDraws:
    """Fixed draws from the held-out rows of each fold, by which matching losses are compared."""
    return eqx.filter_vmap(lambda key, sample: draw_matching(key, sample, model, count, likely))(keys, held)


def default_rate(small: bool, dim: int) -> float:
    """Peak learning rate: in few dimensions what is left to learn is how sharp edges are, and nothing is learned by heart."""
    return 3e-4 if small else 2e-3 if dim <= FEW_DIMENSIONS else 1e-3


def likely_share(small: bool, dim: int) -> float:
    """Share of the angles that are drawn as the likelihood weighs them: many rows in many dimensions do better without."""
    return LIKELY if small or dim <= FEW_DIMENSIONS else 0.0
