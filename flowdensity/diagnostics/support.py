"""Posterior draws that lie where a learned prior or likelihood has seen no data."""

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
"""Number of samples of the density among which levels are counted if there are no held-out rows."""
OUTSIDE_LEVEL = 0.001
"""Level below which a draw is called outside."""
WARNING_FACTOR = 10.0
"""Factor by which the share of draws outside may exceed that of draws of the density itself without a warning."""
ADVICE = (
    "The likelihood draws the posterior there, where log_prob is an extrapolation. Learn the density from data that reach there, "
    "or take a wider prior such as, on the real line, a dist.MixtureGeneral of it and a broad normal."
)
"""Advice for draws outside the support."""


@dataclass(frozen=True)
class SupportCheck:
    """Where posterior draws lie in a learned density.

    Attributes:
        level: share of the reference (held-out data, or samples of the density) that has a lower density than the draw, shape
            `(chain, draw, *batch)`: near zero where next to none of it lies.
        reference: how many rows that share was counted among.
        calibrated: whether these were held-out data.
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
        """Share of draws that are outside."""
        return float(np.mean(self.outside))

    @property
    def limit(self) -> float:
        """Share above which there is a warning: ten times that of the density's own samples.

        Of these 0.001 are outside or, of fewer rows than a thousand, as many as are below all of them.
        """
        return WARNING_FACTOR * max(OUTSIDE_LEVEL, 1.0 / (self.reference + 1))

    @property
    def conclusion(self) -> str:
        """The verdict in words."""
        most = "all" if self.reference * OUTSIDE_LEVEL < 1.0 else f"{1.0 - OUTSIDE_LEVEL:.1%}"
        kind = "held-out rows" if self.calibrated else "samples of the density"
        if self._good:
            opening, where = "The posterior is where the density was learned", ""
        else:
            batch = np.argwhere(self.outside.mean(axis=(0, 1)) > self.limit)
            opening = "The posterior reaches where the density saw no data"
            where = f", in {len(batch)} of {self.outside[0, 0].size} events" if self.outside.ndim > 2 else ""
        return f"{opening}: {self.share:.2%} of the draws lie at a lower density than {most} of {self.reference} {kind}{where}."

    def summary(self) -> str:
        """Return the verdict in words, and what to do if it is bad."""
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
    r"""Find out which posterior draws lie where a density has seen no data, and warn if they are many.

    The level of a draw $\theta$ is $P(\log p(X) < \log p(\theta))$, how much of the density's mass lies outside of its highest
    density region that ends at $\theta$ (Hyndman 1996, American Statistician 50): small far from the data, and between modes too.

    Args:
        posterior: in arviz's form.
        density: the prior, or any other density of the model, with its context if it has one.
        site: variable of the posterior that has the events; by default the density's named sites, or the one variable of its
            event's shape.
        data: held-out rows to count among, shape `(n, *event_shape)` or by name; samples of the density by default, which say
            nothing of where it is wrong about its data.

    Returns:
        The levels. If more draws are outside than `limit`, a warning says so: 1 % from a thousand held-out rows on.

    Raises:
        TypeError, ValueError: if an argument is unusable.
    """
    caller = "check_support"
    check_density(caller, density)
    if density.batch_shape != ():
        raise ValueError(
            f"{caller} expected a density without batch axes; got batch shape {density.batch_shape}. Each context has a call of "
            "its own. Fix: density = density.given(jax.numpy.reshape(density.context, (-1, *density.context_shape))[0])"
        )
    check_given(caller, density)
    events = events_of(caller, draws(caller, posterior), density, site)
    held_out = None if data is None else event_rows(caller, "data", density.model.scaling, data)
    reference = density.sample(jr.key(0), (NUM_REFERENCE_SAMPLES,)) if held_out is None else held_out
    known = np.sort(np.asarray(density.log_prob(reference), np.float64))
    own = np.asarray(density.log_prob(events), np.float64)
    # On the very edge of a support there is no log density.
    level = np.searchsorted(known, np.where(np.isnan(own), -np.inf, own)) / len(known)
    checked = SupportCheck(level, len(known), data is not None)
    if checked.share > checked.limit:
        warn(checked.summary())
    return checked
