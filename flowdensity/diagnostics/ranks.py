"""Ranks of true values among posterior draws, which are uniform if the posteriors are right."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from .._display import Row, html_table, one_line
from .._typing import Array, Float, Int, Key
from ..data.draws import as_posterior
from .uniform import p_value

FALSE_ALARM_RATE = 0.01
"""Largest probability that a calibrated model fails any of the tests, of its sites and of the coverage."""
MIN_SIMULATIONS = 20
"""Minimum number of data sets. Fewer would show only gross faults."""
MIN_DRAWS = 9
"""Minimum number of draws for each data set. The ranks among fewer say little."""
COVERAGE = "expected coverage"
"""Name of the test of all sites together."""
EXPECTED = "0.5 expected"
"""Expected mean rank, as a fraction of the number of draws."""
ADVICE = (
    "Posteriors are too wide, too narrow or biased: a learned density differs from that of the simulator, or a sampler has not "
    "converged. Learning from more simulations or more rows can help. Fix: fd.plots.plot_ranks(ranks)"
)
"""Advice for ranks that are not uniform."""


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of the true values among posterior draws, over many simulated data sets.

    Attributes:
        ranks: number of draws below the true value, by latent site, shape `(simulations, *shape)`.
        draws: number of draws of each posterior. For correct posteriors, ranks are uniform on 0, ..., `draws`.
        coverage: number of draws that are nearer to a random reference point than the true value is, all sites together, shape
            `(simulations,)`. For correct posteriors these are uniform too (TARP; Lemos et al. 2023, arXiv 2302.03026).

    Examples:
        >>> ranks = fd.simulation_based_calibration(key, model, model_kwargs={"y": observed})
        >>> ranks.p_values["theta"]
        >>> ranks.bad
    """

    ranks: dict[str, Int[np.ndarray, "simulations *shape"]]
    draws: int
    coverage: Int[np.ndarray, " simulations"]

    @cached_property
    def p_values(self) -> dict[str, Float[np.ndarray, "*shape"]]:
        """P-values of a test that the ranks are uniform, by site, for each element of the site.

        The test asks whether the empirical distribution of the ranks leaves its simultaneous band anywhere (Säilynoja, Bürkner
        and Vehtari 2022, arXiv 2103.10522). `fd.plots.plot_ranks` draws the band.
        """
        return {name: np.apply_along_axis(p_value, 0, ranks, self.draws) for name, ranks in self.ranks.items()}

    @cached_property
    def coverage_p_value(self) -> float:
        """P-value of the same test of `coverage`."""
        return p_value(self.coverage, self.draws)

    @property
    def threshold(self) -> float:
        """P-value at which a test fails: 0.01, divided by the number of tests."""
        return FALSE_ALARM_RATE / (1 + sum(np.size(ranks[0]) for ranks in self.ranks.values()))

    @property
    def bad(self) -> tuple[str, ...]:
        """Sites with a p-value of at most the threshold, and "expected coverage" if that is wrong."""
        return tuple(name for name, p in self._tested.items() if np.min(p) <= self.threshold)

    @property
    def conclusion(self) -> str:
        """Verdict in words, such as "1 of 3 tests is bad: theta."."""
        bad, count = self.bad, len(self.ranks)
        if not bad:
            return f"No fault found in {count} site{'' if count == 1 else 's'} and in the expected coverage."
        return f"{len(bad)} of {count + 1} tests {'is' if len(bad) == 1 else 'are'} bad: {', '.join(bad)}."

    def to_arviz(self) -> Any:
        """Ranks as probability integral transforms, in the group `prior_sbc` that `arviz_plots.plot_ecdf_pit` takes."""
        every = {**self.ranks, "expected_coverage": self.coverage}
        return as_posterior(
            {name: (ranks[None] + 0.5) / (self.draws + 1) for name, ranks in every.items()}, "prior_sbc"
        )

    def summary(self) -> str:
        """Return the verdict in words, a line for each site, and advice about the bad sites."""
        lines = [f"{self.conclusion} {self._origin()}"]
        lines += [
            f"  {name}: mean rank {mean} ({EXPECTED}), smallest p-value {p}, {verdict}"
            for (name, mean, p), verdict in self._rows()
        ]
        return "\n".join(lines + [ADVICE] * bool(self.bad))

    @property
    def _tested(self) -> dict[str, Any]:
        return {**self.p_values, COVERAGE: self.coverage_p_value}

    def _origin(self) -> str:
        return f"Ranks of the truth among {self.draws} posterior draws, {len(self.coverage)} simulated data sets"

    def _rows(self) -> list[Row]:
        every = {**self.ranks, COVERAGE: self.coverage}
        return [
            Row(
                (name, f"{float(np.mean(every[name])) / self.draws:.3f}", f"{float(np.min(p)):.2g}"),
                "bad" if np.min(p) <= self.threshold else "good",
            )
            for name, p in self._tested.items()
        ]

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        header = ("site", f"mean rank ({EXPECTED})", "smallest p-value", "verdict")
        notes = [self._origin(), *[ADVICE] * bool(self.bad)]
        verdict = "bad" if self.bad else "good"
        return html_table("Ranks", self.conclusion, self._rows(), header=header, notes=notes, verdict=verdict)


def ranks_of(key: Key, draws: Mapping[str, Any], truths: Mapping[str, Any]) -> Ranks:
    """Ranks of true values among posterior draws.

    Args:
        key: JAX PRNG key.
        draws: posterior draws by site, shape `(draws, simulations, *shape)`.
        truths: true values by site, shape `(simulations, *shape)`.
    """
    about, ties = jr.split(key)
    count = len(next(iter(truths.values())))
    references, units = references_and_units(about, truths)
    rank = jax.vmap(ranks_among, in_axes=(0, 1, 0, 0, None))
    ranks, coverage = jax.device_get(rank(jr.split(ties, count), dict(draws), dict(truths), references, units))
    return Ranks({name: ranks[name] for name in truths}, len(next(iter(draws.values()))), coverage)


def ranks_among(
    key: Key,
    draws: Mapping[str, Any],
    truths: Mapping[str, Any],
    references: Mapping[str, Any],
    units: Mapping[str, Any],
) -> tuple[dict[str, Array], Array]:
    """Ranks of the true values of one data set among its posterior draws, by site; and of their distances, all sites together.

    Args:
        key: JAX PRNG key. It breaks ties, as in a constant or discrete coordinate, at random.
        draws: posterior draws by site, shape `(draws, *shape)`.
        truths: true values by site, shape `(*shape)`.
        references: reference points, from which the distances are measured, as `truths`.
        units: units of length, as `truths`.
    """
    ranks = {
        name: _rank(jr.fold_in(key, number), draws[name], truth) for number, (name, truth) in enumerate(truths.items())
    }

    def distance(values: Mapping[str, Any]) -> Array:
        axes = {name: tuple(range(-jnp.ndim(unit), 0)) for name, unit in units.items()}
        return sum(
            jnp.sum(jnp.square((values[name] - references[name]) / units[name]), axis=axes[name]) for name in truths
        )  # type: ignore[return-value]

    return ranks, _rank(jr.fold_in(key, len(truths)), distance(draws), distance(truths))


def references_and_units(
    key: Key, truths: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Reference points, which are the true values of other simulations, and a unit of length for each element of a site.

    Args:
        key: JAX PRNG key.
        truths: true values by site, shape `(simulations, *shape)`.
    """
    count = len(next(iter(truths.values())))
    shift = int(jr.randint(key, (), 1, count))
    # Half the width of the central 68 %, since latent values may have long tails.
    widths = {
        name: 0.5 * np.subtract(*np.quantile(np.asarray(values, float), [0.84, 0.16], axis=0))
        for name, values in truths.items()
    }
    units = {name: np.where(width > 0.0, width, np.inf) for name, width in widths.items()}
    return {name: np.roll(values, shift, axis=0) for name, values in truths.items()}, units


def _rank(key: Key, draws: Any, truth: Any) -> Array:
    below, equal = (jnp.sum(each, axis=0) for each in (draws < truth, draws == truth))
    return below + jr.randint(key, below.shape, 0, equal + 1)
