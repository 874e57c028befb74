"""Result of `reweight`: weights of posterior draws, and diagnostics of the weights."""

import math
from dataclasses import dataclass, field
from typing import Any

import jax.random as jr
import numpy as np

from .._checks import check_count
from .._display import Row, html_table, one_line
from .._typing import Float, Int, Key
from ..data.draws import with_draws
from .correction import Correction, over_draws
from .posterior import draws as draws_of
from .posterior import standard_errors

MIN_EFFECTIVE_DRAWS = 50
"""Number of effective draws below which there is a warning: the error of a mean is then a seventh of a standard deviation."""
NOT_CORRECTED = (
    "not corrected: differences between the flow and its data, and regions without draws, such as a mode missing from the "
    "sampled posterior"
)
"""Errors that the weights cannot correct."""


@dataclass(frozen=True, eq=False)
class Reweighted:
    r"""Weights that turn the draws of a posterior into draws of the posterior under the exact density, and their diagnostics.

    With log ratios $r_i$ of the exact density to the sampled one at draw i, the weights are $w_i \propto e^{r_i}$. The largest
    weights are smoothed (PSIS). If the whole model is in a plate and its groups are independent a posteriori, each group has its
    own weights, so that the errors of groups do not accumulate.

    Attributes:
        log_weights: log weights, shape `(chain, draw)`, or `(chain, draw, *groups)` if the posterior factorizes. Their
            exponentials sum to 1 over draws.
        pareto_k: shape of the tail of the weights, one for each group. Below `threshold` the weighted means can be trusted. It is
            0 if there is nothing to correct.
        effective_sample_size: effective sample size of the weighted draws, one for each group: $\epsilon/\sum_i w_i^2$. Here
            $\epsilon$ is the effective sample size of the chains of log ratios divided by the number of draws (Vehtari et al.
            2024). `expectation` returns the standard error of a mean.
        error: standard deviation of the log ratio over the draws in nats, one for each group. It measures the error of the
            sampled log density up to a constant.
        factorized: whether groups have their own weights.
        threshold: $\min(1 - 1/\log_{10} S, 0.7)$ for S draws. Above it, the weights of S draws cannot be trusted.
        posterior: the posterior that was passed.
        correction: log ratios of the model.
        values: variables of the posterior that have these weights, with the event dimension of each.
        key: key of `resample`.

    Examples:
        >>> repaired = fd.reweight(key, posterior, model, exact={"theta": density}, model_kwargs={"y": observed})
        >>> repaired.pareto_k, repaired.effective_sample_size
        >>> mean, standard_error = repaired.mean()["theta"]
        >>> resampled = repaired.resample()
    """

    log_weights: Float[np.ndarray, "chain draw *groups"]
    pareto_k: Any
    effective_sample_size: Any
    error: Any
    factorized: bool
    threshold: float
    posterior: Any = field(repr=False)
    correction: Correction = field(repr=False)
    values: dict[str, int] = field(repr=False)
    key: Key = field(repr=False)

    @property
    def reliable(self) -> bool:
        """Whether every Pareto k is below the threshold."""
        return bool(np.all(np.asarray(self.pareto_k) < self.threshold))

    def expectation(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""Weighted mean of a quantity computed from the draws, and its Monte Carlo standard error.

        To first order the error of $\hat\mu = \sum_i w_i f_i$ is that of the mean of the chain $S w_i (f_i - \hat\mu)$. Its
        standard error, with arviz's estimate of the autocorrelation, includes the effects of both the weights and the sampler.

        Args:
            values: values of the quantity, shape `(chain, draw, *shape)`. If the posterior factorizes, the shape is
                `(chain, draw, *groups, *shape)`, and the values of each group are computed from its own draws.

        Returns:
            Mean and standard error, shape `shape` or `(*groups, *shape)`. Neither can be trusted if Pareto k is too large.

        Raises:
            ValueError: if the leading axes are not those of the weights.
        """
        values = np.asarray(values, np.float64)
        shape = self.log_weights.shape
        if values.shape[: len(shape)] != shape:
            raise ValueError(
                f"Reweighted.expectation expected `values` with the leading axes {shape}; got shape {values.shape}. "
                "Pass one value per chain and draw; with independent groups, one per chain, draw and group. "
                f"Fix: values = {self._values_from(values.shape)}"
            )
        weights = np.exp(self.log_weights).reshape(shape + (1,) * (values.ndim - len(shape)))
        mean = np.sum(weights * values, axis=(0, 1))
        return mean, standard_errors(shape[0] * shape[1] * weights * (values - mean))

    def _values_from(self, got: tuple[int, ...]) -> str:
        """Code for values of the right shape: the passed values reshaped, if their number fits, or the log weights."""
        shape = self.log_weights.shape
        if got and got[0] == math.prod(shape):
            return f"jax.numpy.reshape(values, {(*shape, *got[1:])})"
        return "reweighted.log_weights"

    def mean(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Weighted mean of each variable, and its Monte Carlo standard error, both with the shape of the variable.

        If the posterior factorizes, these are the variables in the plate. For other values that the model computes from several
        groups, take the mean over draws of `resample`.
        """
        draws = draws_of("Reweighted.mean", self.posterior)
        out = {}
        for name, event_dim in self.values.items():
            axes = self.correction.groups.axes(event_dim) if self.factorized else ()
            lead = tuple(range(2, 2 + len(axes)))
            moved = self.expectation(np.moveaxis(draws[name], axes, lead))
            back = tuple(position - 2 for position in lead)
            mean, error = (np.moveaxis(part, back, axes) for part in moved)
            out[name] = (mean, error)
        return out

    def resample(self, draws: int | None = None) -> Any:
        """Draw a posterior with equal weights, by resampling draws with replacement according to their weights.

        The total weight is divided into equal parts in the order of the chains, and one draw is taken at random in each part.
        Repetitions of a draw are therefore adjacent, and arviz's effective sample size and standard errors account for them. If
        the posterior factorizes, each group is resampled with its own weights and the deterministic sites are computed again.
        Variables that are not sites of the model are left out.

        Args:
            draws: number of draws of each chain; by default the same as before.

        Returns:
            A posterior of the same type with the same chains, dimensions and coordinates. Its attribute `reweighted` describes
            the resampling. Other groups with draws are resampled too, but left out if the posterior factorizes.

        Raises:
            ValueError: if `draws` is not at least 1.
        """
        chains, count = self.log_weights.shape[:2]
        wanted = count if draws is None else draws
        wanted = check_count("Reweighted.resample", "draws", wanted, fix=count)
        values = draws_of("Reweighted.resample", self.posterior)
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in values.items()}
        weights = np.exp(self.log_weights).reshape(chains * count, -1)
        parts = np.asarray(jr.uniform(self.key, (chains * wanted, weights.shape[1])), np.float64)
        rows = np.stack([_rows(one, part) for one, part in zip(weights.T, parts.T, strict=True)], axis=1)
        if not self.factorized:
            rows = rows.reshape(chains, wanted)
            return with_draws(self.posterior, {name: array[rows] for name, array in flat.items()}, rows, self._note())
        groups = self.correction.groups
        latent = {}
        for name, (_, event_dim) in self.correction.latent.items():
            axes = groups.axes(event_dim)
            front = np.moveaxis(flat[name], axes, range(1, 1 + len(axes)))
            front = front.reshape(len(front), weights.shape[1], *front.shape[1 + len(axes) :])
            taken = np.take_along_axis(front, rows.reshape(*rows.shape, *(1,) * (front.ndim - 2)), axis=0)
            taken = taken.reshape(len(rows), *groups.shape, *taken.shape[2:])
            latent[name] = np.moveaxis(taken, range(1, 1 + len(axes)), axes)
        computed = over_draws(self.correction.deterministic, latent, self.correction.chunk, "resample", False)
        sites = latent | computed
        regrouped = {
            name: sites[name].reshape(chains, wanted, *sites[name].shape[1:]) for name in flat if name in sites
        }
        return with_draws(self.posterior, regrouped, None, self._note())

    @property
    def conclusion(self) -> str:
        """Verdict in words."""
        worst, size = float(np.max(self.pareto_k)), float(np.min(self.effective_sample_size))
        drawn = self.log_weights.shape[0] * self.log_weights.shape[1]
        figures = f"Pareto k {worst:.2f}, threshold {self.threshold:.2f}; {size:.0f} effective draws of {drawn}"
        if not self.reliable:
            return f"The weights cannot be trusted: {figures}."
        few = ", but leave few draws" if size < MIN_EFFECTIVE_DRAWS else ""
        return f"The weights can be trusted{few}: {figures}."

    def summary(self) -> str:
        """Return the verdict in words, the corrected errors, and the errors that the weights cannot correct."""
        lines = [f"{label}: {text}" for label, text in self._figures()]
        corrected = [f"corrected at site {name}: {what}" for name, what in self.correction.errors.items()]
        return "\n".join([self.conclusion, *lines, *self.troubles(), *corrected, NOT_CORRECTED])

    def _figures(self) -> list[tuple[str, str]]:
        chains, count = self.log_weights.shape[:2]
        shapes = np.asarray(self.pareto_k)
        worst, size = float(shapes.max()), float(np.min(self.effective_sample_size))
        many = f" for the worst of {shapes.size} groups" if self.factorized else ""
        each = (
            f"one weight for each draw of each group of {' and '.join(self.correction.groups.names)}"
            if self.factorized
            else "one for each draw"
        )
        side = "below" if worst < self.threshold else "not below"
        return [
            (f"weights of {chains} chains of {count} draws", each),
            ("sampled minus exact log density", f"standard deviation {float(np.max(self.error)):.3g} nats{many}"),
            (
                f"Pareto k{many}",
                f"{worst:.2f}, {side} the limit of {self.threshold:.2f} for {chains * count} draws",
            ),
            (f"effective draws{many}", f"{size:.0f} of {chains * count}"),
        ]

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        rows = [
            *map(Row, self._figures()),
            *(Row((f"corrected at site {name}", what)) for name, what in self.correction.errors.items()),
        ]
        verdict = "bad" if not self.reliable else "unclear" if self.troubles() else "good"
        notes = [*self.troubles(), NOT_CORRECTED]
        return html_table("Reweighted posterior", self.conclusion, rows, notes=notes, verdict=verdict)

    def troubles(self) -> list[str]:
        """Return the reasons why weighted means cannot be trusted, each with a remedy."""
        troubles = []
        shapes, sizes = np.asarray(self.pareto_k), np.asarray(self.effective_sample_size)
        if not self.reliable:
            bad, name = int(np.sum(shapes >= self.threshold)), next(iter(self.correction.targets))
            whose = f"{bad} of {shapes.size} groups are above the limit: their" if self.factorized else "the"
            troubles.append(
                f"{whose} weighted means cannot be trusted. Sample with the exact density instead, with NUTS or delayed "
                f"acceptance. Fix: kernel = fd.DelayedAcceptance(numpyro.infer.NUTS(model), {{{name!r}: density}})"
            )
        if sizes.min() < MIN_EFFECTIVE_DRAWS:
            count, known = int(np.sum(sizes < MIN_EFFECTIVE_DRAWS)), 1.0 / math.sqrt(sizes.min())
            few = f"{count} of {sizes.size} groups have" if self.factorized else "there are"
            troubles.append(
                f"{few} fewer than {MIN_EFFECTIVE_DRAWS} effective draws: means are known to {known:.2g} posterior standard "
                "deviations. More draws help if arviz.rhat of the sampled draws is near 1. Otherwise the chains may be in a "
                "region where only the sampled density has mass, and a density closer to the exact one is needed"
            )
        return troubles

    def _note(self) -> str:
        sites = "; ".join(f"{name}: {what}" for name, what in self.correction.errors.items())
        each = "by group" if self.factorized else "by draw"
        return f"resampled {each} to the exact density ({sites}); Pareto k {float(np.max(self.pareto_k)):.2f}"


def _rows(weights: Float[np.ndarray, " draws"], parts: Float[np.ndarray, " wanted"]) -> Int[np.ndarray, " wanted"]:
    """Return the draw at a random point of each equal part of the total weight, as indices."""
    edges = np.cumsum(weights)
    points = (np.arange(len(parts)) + parts) / len(parts) * edges[-1]
    return np.minimum(np.searchsorted(edges, points, side="right"), len(weights) - 1)
