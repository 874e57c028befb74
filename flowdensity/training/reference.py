"""The reference of a flow on few rows: a mixture of Gaussians, if held-out rows are likelier under it than under one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import tqdm
from scipy.stats import norm

from .._registry import savable
from .._typing import Key
from ..data.scaling import Scaling
from ..data.statistics import (
    FULL_COVARIANCE_LIMIT,
    MIN_RELATIVE_DEVIATION,
    fit_mixture,
    mean_and_error,
    resampled,
    shares,
    times_rows,
    whitening,
)
from ..data.tables import Sample
from ..models.mixture import GaussianMixture
from .splits import kinds
from .training import FEW_ROWS

COMPONENT_COUNTS = (2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of components that are tried."""
VARIANCE_FLOORS = (0.01, 0.03, 0.1, 0.3)
"""Values that are tried for what is added to the variances of the components, as a fraction of the variances of all rows."""
NUM_FOLDS = 5
"""Parts of the rows, each of which is held out once."""
MAX_WORSE_COUNTS = 2
"""The search ends after this many numbers of components in a row that do worse than the best."""


@savable
@dataclass(frozen=True)
class ReferenceChoice:
    """How the reference of a flow was chosen, by cross-validation.

    Attributes:
        components: number of Gaussians in the mixture; 1 is the fitted Gaussian.
        floor: what was added to the variances of its components, as a fraction of those of all rows.
        gain: mean log density of held-out rows under the best mixture less that under one Gaussian, nats, and its standard error.
        lead: the same difference for flows that were trained from the mixture and from one Gaussian; None where only one of
            the two was trained.
    """

    components: int
    floor: float
    gain: tuple[float, float]
    lead: tuple[float, float] | None = None

    def summary(self) -> str:
        """One line of text."""
        gain, error = self.gain
        chosen = "the fitted Gaussian" if self.components == 1 else f"a mixture of {self.components} Gaussians"
        text = f"reference: {chosen}; on held-out rows the best mixture is {gain:+.3f} +- {error:.3f} nats above one Gaussian"
        if self.lead is None:
            return text
        lead, error = self.lead
        return f"{text}, and flows trained from it {lead:+.3f} +- {error:.3f} above flows trained from the Gaussian"


def choose_reference(key: Key, scaling: Scaling, table: Sample, *, progress: bool) -> ReferenceChoice | None:
    """The number of components and the floor of their variances under which held-out rows are likeliest.

    Every row is held out once. A mixture is chosen if it gains more than its standard error.

    Args:
        key: JAX PRNG key of the split.
        scaling: that by which the rows are white.
        table: whitened rows without contexts.
        progress: whether to show a bar.

    Returns:
        The choice; None if there are too few rows, or too many dimensions, for any mixture.
    """
    rows, dim = table.states.shape
    # Rows that are repeated are held out together, and say no more than one.
    distinct, kind = kinds(table)
    most = int(0.8 * min(table.effective, len(distinct))) // (dim + 1)
    if dim > FULL_COVARIANCE_LIMIT or most < COMPONENT_COUNTS[0]:
        return None
    fold = np.asarray(jr.permutation(key, len(distinct)) % NUM_FOLDS)[kind]
    parts = [np.flatnonzero(fold == number) for number in range(NUM_FOLDS)]
    splits = [
        whiten_again(scaling, table.take(jnp.asarray(np.flatnonzero(fold != number))), table.take(jnp.asarray(part)))
        for number, part in enumerate(parts)
    ]
    held = [np.asarray(out.states, np.float64) for _, out in splits]
    order = np.concatenate(parts)
    weights = shares(_weights(table), rows)[order]

    def tried(components: int, floor: float) -> ReferenceChoice:
        mixtures = [_fit(kept, components, floor) for kept, _ in splits]
        above = np.concatenate(
            [m.score_samples(out) - norm.logpdf(out).sum(axis=1) for m, out in zip(mixtures, held, strict=True)]
        )
        return ReferenceChoice(components, floor, mean_and_error(above, weights, kind[order]))

    floors = tqdm.tqdm(VARIANCE_FLOORS, desc="reference", unit="floor", disable=not progress)
    choice = max((_best_of(tried, floor, most) for floor in floors), key=_gain)
    gain, error = choice.gain
    return choice if gain > error else ReferenceChoice(1, 0.0, choice.gain)


def fit_reference(table: Sample, choice: ReferenceChoice) -> GaussianMixture | None:
    """The mixture that was chosen, fitted to whitened rows; None for the fitted Gaussian."""
    if choice.components == 1:
        return None
    mixture = _fit(table, choice.components, choice.floor)
    return GaussianMixture(mixture.weights_, mixture.means_, mixture.covariances_)


def whiten_again(scaling: Scaling, kept: Sample, held: Sample) -> tuple[Sample, Sample]:
    """Whiten both by the kept rows alone: the fitted Gaussian is a rival here, and must not have seen what is held out.

    The whitening they have already is of all rows, and is taken off first: rows that are white are taken to be so.
    """
    scale = np.asarray(scaling.scale, np.float64)
    before = [times_rows(scale, np.asarray(each.states, np.float64)) for each in (kept, held)]
    # A column that varies in the held-out rows alone is not constant to those who know them all.
    deviation = np.linalg.norm(scale, axis=1) if scale.ndim == 2 else scale
    location, _, whitener = whitening(before[0], _weights(kept), MIN_RELATIVE_DEVIATION * deviation)
    white = [jnp.asarray(times_rows(whitener, rows - location), float) for rows in before]
    return kept._replace(states=white[0]), held._replace(states=white[1])


def _best_of(tried: Callable[[int, float], ReferenceChoice], floor: float, most: int) -> ReferenceChoice:
    """The best number of components, up to `most`, at one floor: more are tried until two in a row have done worse."""
    best, worse = tried(COMPONENT_COUNTS[0], floor), 0
    for components in COMPONENT_COUNTS[1:]:
        if components > most or worse == MAX_WORSE_COUNTS:
            break
        choice = tried(components, floor)
        best, worse = (choice, 0) if _gain(choice) > _gain(best) else (best, worse + 1)
    return best


def _gain(choice: ReferenceChoice) -> float:
    return choice.gain[0]


def _fit(table: Sample, components: int, floor: float) -> Any:
    rows = np.asarray(table.states, np.float64)
    return fit_mixture(resampled(rows, _weights(table), min(FEW_ROWS, len(rows))), components, floor)


def _weights(table: Sample) -> np.ndarray | None:
    return None if table.weights is None else np.asarray(table.weights, np.float64)
