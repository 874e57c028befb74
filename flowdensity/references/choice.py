"""The reference of a flow: the fitted Gaussian, or a mixture of Gaussians if held-out rows are likelier under it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

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
    mean_and_error,
    shares,
    times_rows,
    whitening,
)
from ..data.tables import Sample
from .fit import fit_reference

COMPONENT_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Numbers of components that are tried. Without a context one component is the fitted Gaussian itself."""
VARIANCE_FLOORS = (0.001, 0.01, 0.03, 0.1, 0.3)
"""Values that are tried for what is added to the variances of the components, as a fraction of the variances of all rows."""
NUM_FOLDS = 5
"""Parts of the rows, each of which is held out once."""
MAX_COMPARED_ROWS = 5_000
"""Maximum number of rows that the candidates are compared on."""
MAX_WORSE = 2
"""A search ends after this many candidates in a row that do worse than the best."""


@savable
@dataclass(frozen=True)
class ReferenceChoice:
    """How the reference of a flow was chosen.

    Attributes:
        components: number of Gaussians in the mixture; None for the fitted Gaussian.
        floor: what was added to the variances of its components, as a fraction of those of all rows.
        gain: mean log density of held-out rows under the best mixture less that under the fitted Gaussian, nats, and its
            standard error.
        lead: the same under that mixture less that under a flow trained from the fitted Gaussian; None if none was trained.
    """

    components: int | None
    floor: float
    gain: tuple[float, float]
    lead: tuple[float, float] | None = None

    def summary(self) -> str:
        """One line of text."""
        gain, error = self.gain
        plural = "" if self.components == 1 else "s"
        chosen = (
            "the fitted Gaussian" if self.components is None else f"a mixture of {self.components} Gaussian{plural}"
        )
        text = f"reference: {chosen}; on held-out rows the best mixture is {gain:+.3f} +- {error:.3f} nats above one Gaussian"
        if self.lead is None:
            return text
        lead, error = self.lead
        return f"{text}, and {lead:+.3f} +- {error:.3f} above a flow trained from that Gaussian"


def choose_reference(
    key: Key, scaling: Scaling, table: Sample, *, folds: int, progress: bool
) -> ReferenceChoice | None:
    """Choose the number of components and the floor of their variances under which held-out rows are likeliest.

    A mixture is chosen if it gains more than its standard error over the fitted Gaussian.

    Args:
        key: JAX PRNG key of the split.
        scaling: the scaling that whitened the rows.
        table: whitened rows, and their contexts.
        folds: how many of five parts of the rows are held out, one after another.
        progress: whether to show a bar.

    Returns:
        The choice; None if there are too few rows, or too many dimensions, for any mixture.
    """
    if len(table.states) > MAX_COMPARED_ROWS:
        table = table.take(jr.permutation(jr.fold_in(key, 0), len(table.states))[:MAX_COMPARED_ROWS])
    dim, context_dim = table.states.shape[1], table.contexts.shape[1]
    # Rows that are repeated are held out together, and say no more than one.
    distinct, kind = table.kinds()
    most = int(0.8 * min(table.effective, len(distinct))) // (dim + min(dim, context_dim) + 1)
    counts = [count for count in COMPONENT_COUNTS if (1 if context_dim else 2) <= count <= most]
    if dim > FULL_COVARIANCE_LIMIT or not counts:
        return None
    fold = np.asarray(jr.permutation(key, len(distinct)) % NUM_FOLDS)[kind]
    parts = [np.flatnonzero(fold == number) for number in range(folds)]
    splits = [
        whiten_again(scaling, table.take(jnp.asarray(np.flatnonzero(fold != number))), table.take(jnp.asarray(part)))
        for number, part in enumerate(parts)
    ]
    order = np.concatenate(parts)
    weights = shares(None if table.weights is None else np.asarray(table.weights, np.float64)[order], len(order))

    def tried(components: int, floor: float) -> ReferenceChoice:
        above = [
            fit_reference(kept, components, floor).log_densities(held)
            - norm.logpdf(np.asarray(held.states, np.float64)).sum(axis=1)
            for kept, held in splits
        ]
        return ReferenceChoice(components, floor, mean_and_error(np.concatenate(above), weights, kind[order]))

    def with_floor(floor: float) -> ReferenceChoice:
        return _best(counts, lambda count: tried(count, floor))

    choice = _best(tqdm.tqdm(VARIANCE_FLOORS, desc="reference", unit="floor", disable=not progress), with_floor)
    gain, error = choice.gain
    return choice if gain > error else ReferenceChoice(None, 0.0, choice.gain)


def whiten_again(scaling: Scaling, kept: Sample, held: Sample) -> tuple[Sample, Sample]:
    """Whiten both by the kept rows alone: the fitted Gaussian is a rival here, and must not have seen what is held out.

    The rows have been whitened by all of them, which is undone first.
    """
    scale = np.asarray(scaling.scale, np.float64)
    before = [times_rows(scale, np.asarray(each.states, np.float64)) for each in (kept, held)]
    # A column that varies in the held-out rows alone is not constant in the whole table.
    deviation = np.linalg.norm(scale, axis=1) if scale.ndim == 2 else scale
    weights = None if kept.weights is None else np.asarray(kept.weights, np.float64)
    location, _, whitener = whitening(before[0], weights, MIN_RELATIVE_DEVIATION * deviation)
    white = [jnp.asarray(times_rows(whitener, rows - location), float) for rows in before]
    return kept._replace(states=white[0]), held._replace(states=white[1])


def _best(candidates: Iterable[float], tried: Callable[..., ReferenceChoice]) -> ReferenceChoice:
    """The choice with the largest gain; the search ends after two candidates in a row that do worse."""
    best, worse = None, 0
    for candidate in candidates:
        choice = tried(candidate)
        best, worse = (choice, 0) if best is None or choice.gain[0] > best.gain[0] else (best, worse + 1)
        if worse == MAX_WORSE:
            break
    assert best is not None, "there is at least one candidate"
    return best
