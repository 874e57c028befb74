"""Posterior draws in regions where a learned prior or likelihood has seen no data."""

from dataclasses import dataclass
from typing import Any

import jax.random as jr
import numpy as np

from .._display import Row, html_table, one_line
from .._typing import ArrayLike
from .._warnings import warn
from ..data.tables import Named
from ..data.whitened import event_rows
from ..distributions.checks import check_density, check_given
from ..distributions.learned import AbstractLearnedDensity
from .posterior import draws, events_of

NUM_REFERENCE_SAMPLES = 8192
"""Number of samples of the density that serve as the reference if there are no held-out rows."""
OUTSIDE_LEVEL = 0.001
"""Level below which a draw is outside."""
WARNING_FACTOR = 10.0
"""Factor by which the fraction of draws outside may exceed that of samples of the density without a warning."""
ADVICE = (
    "The likelihood pulls the posterior into this region, where log_prob is an extrapolation. Learn the density from data that "
    "cover the region, or use a wider prior. On the real line, this can be a dist.MixtureGeneral of the density and a broad "
    "normal."
)
"""Advice for draws outside the region of the data."""


@dataclass(frozen=True)
class SupportCheck:
    """Location of posterior draws relative to the data of a learned density.

    Attributes:
        level: fraction of the reference (held-out data, or samples of the density) with a lower density than the draw, shape
            `(chain, draw, *batch)`. It is near zero where there is hardly any of the reference.
        reference: number of rows in the reference.
        calibrated: whether the reference is held-out data.

    Examples:
        >>> checked = fd.check_support(posterior, density)
        >>> checked.share, checked.limit
        >>> print(checked.summary())
    """

    level: np.ndarray
    reference: int
    calibrated: bool

    @property
    def outside(self) -> np.ndarray:
        """Whether a draw has a lower density than 99.9 % of the reference, shape `(chain, draw, *batch)`."""
        return self.level < OUTSIDE_LEVEL

    @property
    def share(self) -> float:
        """Fraction of draws that are outside."""
        return float(np.mean(self.outside))

    @property
    def limit(self) -> float:
        """Fraction of draws outside above which there is a warning: ten times that of the density's own samples.

        A fraction 0.001 of these samples is outside. With fewer than a thousand reference rows, samples are outside if their
        density is below that of all reference rows, and the fraction is larger.
        """
        return WARNING_FACTOR * max(OUTSIDE_LEVEL, 1.0 / (self.reference + 1))

    @property
    def conclusion(self) -> str:
        """Verdict in words."""
        most = "all" if self.reference * OUTSIDE_LEVEL < 1.0 else f"{1.0 - OUTSIDE_LEVEL:.1%}"
        kind = "held-out rows" if self.calibrated else "samples of the density"
        if self._good:
            opening, where = "The posterior lies where the density has data", ""
        else:
            batch = np.argwhere(self.outside.mean(axis=(0, 1)) > self.limit)
            opening = "The posterior reaches a region where the density has no data"
            where = f", in {len(batch)} of {self.outside[0, 0].size} events" if self.outside.ndim > 2 else ""
        return f"{opening}: {self.share:.2%} of the draws have a lower density than {most} of {self.reference} {kind}{where}."

    def summary(self) -> str:
        """Return the verdict in words, and advice if it is bad."""
        return self.conclusion if self._good else f"{self.conclusion} {ADVICE}"

    @property
    def _good(self) -> bool:
        return self.share <= self.limit

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        verdict = "good" if self._good else "bad"
        rows = [Row(("share of draws outside", f"{self.share:.2%}", f"at most {self.limit:.2%}"), verdict)]
        header = ("figure", "value", "threshold", "verdict")
        notes = () if self._good else (ADVICE,)
        return html_table("Support", self.conclusion, rows, header=header, notes=notes, verdict=verdict)


def check_support(
    posterior: Any,
    density: AbstractLearnedDensity,
    *,
    site: str | None = None,
    data: ArrayLike | Named | None = None,
) -> SupportCheck:
    r"""Find posterior draws in regions where a density has seen no data, and warn if there are many.

    The level of a draw $\theta$ is $P(\log p(X) < \log p(\theta))$. It is the mass of the density outside of the highest density
    region whose boundary passes through $\theta$ (Hyndman 1996, American Statistician 50). It is small far from the data, and
    also between modes.

    Args:
        posterior: the posterior in arviz's form.
        density: the prior, or any other density of the model, with its context if it is conditional.
        site: variable of the posterior with the events; by default the named sites of the density, or the only variable with the
            event shape.
        data: held-out rows for the reference, shape `(n, *event_shape)` or by name. The default is samples of the density, which
            cannot show where the density differs from its data.

    Returns:
        The levels. There is a warning if the fraction of draws outside exceeds `limit`, which is 1 % for a thousand held-out rows
        or more.

    Raises:
        TypeError, ValueError: if an argument is invalid.

    Examples:
        >>> checked = fd.check_support(posterior, density, site="theta", data=data)
        >>> checked.outside.sum()  # number of draws outside
    """
    caller = "check_support"
    check_density(caller, density)
    if density.batch_shape != ():
        raise ValueError(
            f"{caller} expected a density without batch axes; got batch shape {density.batch_shape}. Call it once per context. "
            "Fix: density = density.given(jax.numpy.reshape(density.context, (-1, *density.context_shape))[0])"
        )
    check_given(caller, density)
    events = events_of(caller, draws(caller, posterior), density, site)
    held_out = None if data is None else event_rows(caller, "data", density.model.scaling, data)
    reference = density.sample(jr.key(0), (NUM_REFERENCE_SAMPLES,)) if held_out is None else held_out
    known = np.sort(np.asarray(density.log_prob(reference), np.float64))
    own = np.asarray(density.log_prob(events), np.float64)
    # There may be no log density exactly on the edge of a support.
    level = np.searchsorted(known, np.where(np.isnan(own), -np.inf, own)) / len(known)
    checked = SupportCheck(level, len(known), data is not None)
    if checked.share > checked.limit:
        warn(checked.summary())
    return checked
