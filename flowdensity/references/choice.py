"""Choice of the reference: the fitted Gaussian, or a mixture of Gaussians if it has a higher held-out log density."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import jax.numpy as jnp
import jax.random as jr
import numpy as np
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
"""Numbers of mixture components to try; without a context, one component is the fitted Gaussian itself."""
VARIANCE_FLOORS = (0.001, 0.01, 0.03, 0.1, 0.3)
"""Values to try for the constant added to the component variances, as a fraction of the variances of all rows."""
NUM_FOLDS = 5
"""Number of folds into which the rows are split for cross-validation."""
MIN_COMPARED_ROWS = 20
"""Minimum number of distinct rows for a choice, since the error of a score is unknown with a few held-out rows."""
MAX_COMPARED_ROWS = 5_000
"""Maximum number of rows used to compare the candidates."""
MAX_WORSE = 2
"""A search stops after this many consecutive candidates that are worse than the best one."""


@savable
@dataclass(frozen=True)
class ReferenceChoice:
    """Chosen reference of a flow, with the held-out scores behind the choice.

    Attributes:
        components: number of Gaussians in the mixture; None for the fitted Gaussian.
        floor: constant added to the variances of the components, as a fraction of the variances of all rows.
        gain: mean held-out log density under the best mixture minus that under the fitted Gaussian, in nats, and its
            standard error.
        lead: mean held-out log density under that mixture minus that under a flow trained from the fitted Gaussian, in nats,
            and its standard error; None if no such flow was trained.

    Examples:
        >>> report.reference.components  # None for the fitted Gaussian
        >>> print(report.reference.summary())
    """

    components: int | None
    floor: float
    gain: tuple[float, float]
    lead: tuple[float, float] | None = None

    def summary(self) -> str:
        """Say in one line of text which reference was chosen, why, and by which held-out log densities."""
        names = {None: "the fitted Gaussian", 1: "the regression on the context"}
        chosen = names.get(self.components, f"a mixture of {self.components} Gaussians")
        rival = "one Gaussian" if self.lead is None else "the flow trained from one Gaussian"
        gain, error = self.gain
        if self.components is not None:
            reason = f"because held-out rows are more likely under it than under {rival}"
        elif self.lead is None and gain > error:
            reason = "since the fit stopped before a mixture of Gaussians was compared with the trained flow"
        else:
            reason = (
                f"because held-out rows are not clearly more likely under a mixture of Gaussians than under {rival}"
            )
        scores = f"{gain:+.3f} +- {error:.3f} nats relative to one Gaussian"
        if self.lead is not None:
            lead, error = self.lead
            scores += f", {lead:+.3f} +- {error:.3f} nats relative to that flow"
        return f"reference: {chosen}, {reason}; log density per held-out row under the mixture: {scores}"


def choose_reference(key: Key, scaling: Scaling, table: Sample, *, folds: int) -> ReferenceChoice | None:
    """Choose the number of components and the variance floor that maximize the held-out log density.

    A mixture is chosen if its gain over the fitted Gaussian exceeds the standard error of the gain.

    Args:
        key: JAX PRNG key for the split into folds.
        scaling: the scaling that whitened the rows.
        table: whitened rows and their contexts.
        folds: number of the five folds that are held out, one after another.

    Returns:
        The choice; None if there are too few rows, or too many dimensions, for any mixture.
    """
    if len(table.states) > MAX_COMPARED_ROWS:
        table = table.take(jr.permutation(jr.fold_in(key, 0), len(table.states))[:MAX_COMPARED_ROWS])
    dim, context_dim = table.states.shape[1], table.contexts.shape[1]
    # Equal rows stay in the same fold and count as one observation.
    distinct, kind = table.kinds()
    most = int(0.8 * min(table.effective, len(distinct))) // (dim + min(dim, context_dim) + 1)
    counts = [count for count in COMPONENT_COUNTS if (1 if context_dim else 2) <= count <= most]
    if dim > FULL_COVARIANCE_LIMIT or len(distinct) < MIN_COMPARED_ROWS or not counts:
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

    choice = _best(VARIANCE_FLOORS, with_floor)
    gain, error = choice.gain
    return choice if gain > error else ReferenceChoice(None, 0.0, choice.gain)


def whiten_again(scaling: Scaling, kept: Sample, held: Sample) -> tuple[Sample, Sample]:
    """Whiten both tables with the statistics of the kept rows alone.

    The fitted Gaussian is one of the candidates, so it must not be fitted to the held-out rows. The rows that are passed in were
    whitened with the statistics of all rows; this is undone first.
    """
    scale = np.asarray(scaling.scale, np.float64)
    before = [times_rows(scale, np.asarray(each.states, np.float64)) for each in (kept, held)]
    # A column may be constant in the kept rows and vary in the held-out rows, so its deviation needs a lower bound.
    deviation = np.linalg.norm(scale, axis=1) if scale.ndim == 2 else scale
    weights = None if kept.weights is None else np.asarray(kept.weights, np.float64)
    location, _, whitener = whitening(before[0], weights, MIN_RELATIVE_DEVIATION * deviation)
    white = [jnp.asarray(times_rows(whitener, rows - location), float) for rows in before]
    return kept._replace(states=white[0]), held._replace(states=white[1])


def _best(candidates: Iterable[float], tried: Callable[..., ReferenceChoice]) -> ReferenceChoice:
    """Return the choice with the largest gain; stop after `MAX_WORSE` consecutive candidates that are worse."""
    best, worse = None, 0
    for candidate in candidates:
        choice = tried(candidate)
        best, worse = (choice, 0) if best is None or choice.gain[0] > best.gain[0] else (best, worse + 1)
        if worse == MAX_WORSE:
            break
    assert best is not None, "there is at least one candidate"
    return best
