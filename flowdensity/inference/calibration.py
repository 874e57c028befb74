"""Coverage of a learned posterior over simulated data sets."""

from dataclasses import dataclass
from typing import Any

import jax.random as jr
import numpy as np
from scipy.stats import kstest

from .._display import Row, html_table, one_line
from .._typing import Float, Key
from ..data.draws import as_posterior
from ..diagnostics.sbc import FALSE_ALARM_RATE, Ranks


@dataclass(frozen=True, eq=False)
class PosteriorCheck:
    """Simulation-based calibration and expected coverage of a learned posterior.

    Attributes:
        ranks: ranks of the true values among the draws, for each element of each latent site.
        credibilities: for each data set, the fraction of draws that are closer to a random reference point than the true value
            is, shape `(simulations,)`. For correct posteriors these are uniform (Lemos et al. 2023, arXiv 2302.03026).

    Examples:
        >>> amortized, _ = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
        >>> check = amortized.check(key, num_simulations=50)
        >>> print(check.summary())
        >>> check.bad
    """

    ranks: Ranks
    credibilities: Float[np.ndarray, " simulations"]

    @property
    def p_value(self) -> float:
        """P-value of a Kolmogorov-Smirnov test of uniform credibilities, which tests all latent sites together."""
        return float(kstest(self.credibilities, "uniform").pvalue)

    @property
    def bad(self) -> tuple[str, ...]:
        """Names of the sites whose ranks are not uniform, and "coverage" if the expected coverage is wrong."""
        return (*self.ranks.bad, *["coverage"] * (self.p_value < FALSE_ALARM_RATE))

    @property
    def conclusion(self) -> str:
        """Verdict in words."""
        if not self.bad:
            return "No fault found in the ranks and in the expected coverage."
        return f"Not calibrated: {', '.join(self.bad)}."

    def to_arviz(self) -> Any:
        """Ranks as probability integral transforms, in the group `prior_sbc` that arviz's `plot_ecdf_pit` takes."""
        draws = self.ranks.draws
        return as_posterior(
            {name: (ranks[None] + 0.5) / (draws + 1) for name, ranks in self.ranks.ranks.items()}, "prior_sbc"
        )

    def summary(self) -> str:
        """Return the verdict in words, a line for each site, and the test of the expected coverage."""
        return "\n".join([self.conclusion, self.ranks.summary(), f"expected coverage: p-value {self.p_value:.2g}"])

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        rows = [*self.ranks._rows(), Row(("expected coverage", "", f"{self.p_value:.2g}"))]
        header = ("site", "mean rank (0.5 expected)", "smallest p-value", "verdict")
        return html_table(
            "Posterior check", self.conclusion, rows, header=header, notes=[], verdict="bad" if self.bad else "good"
        )


def expected_coverage(key: Key, draws: np.ndarray, truths: np.ndarray) -> Float[np.ndarray, " simulations"]:
    """Credibility of the region that a true value is on the edge of, for regions around random reference points.

    Args:
        key: JAX PRNG key of the reference points, which are true values of other simulations.
        draws: posterior draws, shape `(draws, simulations, *event_shape)`.
        truths: true values, shape `(simulations, *event_shape)`.
    """
    flat = truths.reshape(len(truths), -1)
    # Half the width of the central 68 %, since latent values may have long tails.
    low, high = np.quantile(flat, [0.16, 0.84], axis=0)
    units = np.maximum(0.5 * (high - low), np.finfo(float).tiny)
    shift_key, tie_key = jr.split(key)
    references = np.roll(flat, int(jr.randint(shift_key, (), 1, len(flat))), axis=0)
    distances = np.linalg.norm((draws.reshape(*draws.shape[:2], -1) - references) / units, axis=-1)
    closer = np.sum(distances < np.linalg.norm((flat - references) / units, axis=-1), axis=0)
    # Uniform numbers make the credibilities continuous, as the test assumes.
    return (closer + np.asarray(jr.uniform(tie_key, closer.shape))) / (len(draws) + 1)
