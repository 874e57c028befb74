"""A posterior that was sampled with a learned or amortized density, weighted to the one under the exact density."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax.random as jr
import numpy as np
from scipy.special import logsumexp

from .._checks import check_count, check_key
from .._typing import Float, Int, Key
from .._warnings import warn
from .correction import Correction, Learned, correction, over_draws
from .posterior import AGAIN, effective, finite_chains, smoothed, standard_errors, with_draws
from .posterior import draws as draws_of

LEAST = 25
"""Draws that arviz's fit of the tail takes at least."""
FEWEST = 4
"""Draws of a chain from which arviz finds an effective sample size."""
FEW = 50
"""Effective draws of which fewer know a mean to no better than a seventh of a posterior standard deviation."""
EVEN = 1e-3
"""Spread of log ratios in nats below which they are equal but for rounding, and have no tail to fit."""


@dataclass(frozen=True, eq=False)
class Reweighted:
    r"""A posterior with the weights that make it the one under the exact density, and how far they can be trusted.

    With log ratios $r_i$ of the exact density to the sampled one at draw i, the weights are
    $w_i \propto e^{r_i}$, the largest of them smoothed (PSIS). Where all of the model lies in a plate and its groups are
    independent a posteriori, each group has weights of its own: their errors do not add up.

    Attributes:
        log_weights: shape `(chain, draw)`, or `(chain, draw, *groups)` where the posterior factorises; the exponentials have the
            sum 1 over draws.
        pareto_k: shape of the tail of the weights, one for each group. Below `threshold` the weighted means can be trusted; 0
            where there is nothing to correct.
        effective_sample_size: of the weighted draws, one for each group: $\epsilon/\sum_i w_i^2$, with $\epsilon$ the
            effective sample size of the log ratios' own chains over the number of draws (Vehtari et al. 2024). What a mean is
            worth follows from its own standard error, see `expectation`.
        error: standard deviation of the log ratio over the draws in nats, one for each group: by how much the sampled log
            density was off, but for a constant.
        factorised: whether groups have weights of their own.
        threshold: $\min(1 - 1/\log_{10} S, 0.7)$ for S draws: above it the weights of so few draws say nothing.
        posterior: as it came.
        correction: of the model.
        values: variables of the posterior that have these weights, with the event dimension of each.
        key: of `resample`.
    """

    log_weights: Float[np.ndarray, "chain draw *groups"]
    pareto_k: Any
    effective_sample_size: Any
    error: Any
    factorised: bool
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
        r"""Weighted mean of something computed from the draws, and its Monte-Carlo standard error.

        To first order the error of $\hat\mu = \sum_i w_i f_i$ is that of the mean of the chain $S w_i (f_i - \hat\mu)$, whose
        autocorrelation is arviz's: what the weights and what the sampler cost are both in it.

        Args:
            values: shape `(chain, draw, *shape)`; where the posterior factorises `(chain, draw, *groups, *shape)`, each group
                computed from its own draws.

        Returns:
            Mean and standard error, shape `shape` or `(*groups, *shape)`. Neither can be trusted where k is too large.

        Raises:
            ValueError: if the leading axes are not those of the weights.
        """
        values = np.asarray(values, np.float64)
        shape = self.log_weights.shape
        if values.shape[: len(shape)] != shape:
            raise ValueError(
                f"Reweighted.expectation expected `values` with shape {shape} and more axes behind; got {values.shape}. "
                "There is one for each draw of each chain, and of each group where the posterior factorises. "
                f"Fix: values = {self._values_from(values.shape)}"
            )
        weights = np.exp(self.log_weights).reshape(shape + (1,) * (values.ndim - len(shape)))
        mean = np.sum(weights * values, axis=(0, 1))
        return mean, standard_errors(shape[0] * shape[1] * weights * (values - mean))

    def _values_from(self, got: tuple[int, ...]) -> str:
        """Values of the right shape: those that came, where they only have their axes otherwise, or the log weights."""
        shape = self.log_weights.shape
        if got and got[0] == math.prod(shape):
            return f"jax.numpy.reshape(values, {(*shape, *got[1:])})"
        return "reweighted.log_weights"

    def mean(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Weighted mean of each variable, and its Monte-Carlo standard error, both of the variable's shape.

        Where the posterior factorises, these are the variables that lie in the plate; of whatever else the model computes
        from several groups, the mean over draws of `resample` is one.
        """
        draws = draws_of("Reweighted.mean", self.posterior)
        out = {}
        for name, event_dim in self.values.items():
            axes = self.correction.groups.axes(event_dim) if self.factorised else ()
            lead = tuple(range(2, 2 + len(axes)))
            moved = self.expectation(np.moveaxis(draws[name], axes, lead))
            back = tuple(position - 2 for position in lead)
            mean, error = (np.moveaxis(part, back, axes) for part in moved)
            out[name] = (mean, error)
        return out

    def resample(self, draws: int | None = None) -> Any:
        """A posterior with equal weights: draws with replacement, as often as they weigh.

        One draw is taken at random in each of equal parts of the total weight, in the order of the chains. The same draw several
        times is therefore side by side, and arviz's effective sample size and standard errors see it. Where the posterior
        factorises, the groups are drawn each by its own weights and the deterministic sites computed anew; variables that are not
        sites of the model are left out.

        Args:
            draws: of each chain; by default as many as there were.

        Returns:
            A posterior of the same type, with the same chains, dimensions and coordinates, whose attribute `reweighted` says
            how it was made. Other groups that have draws are resampled too; where the posterior factorises they are left out.

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
        if not self.factorised:
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

    def summary(self) -> str:
        """What was corrected, how far it can be trusted and what it cannot correct, in words."""
        chains, count = self.log_weights.shape[:2]
        total = chains * count
        shapes = np.asarray(self.pareto_k)
        worst, kept = float(shapes.max()), float(np.min(self.effective_sample_size))
        many = f" for the worst of {shapes.size} groups" if self.factorised else ""
        groups = self.correction.groups
        each = (
            f"one weight for each draw of each group of {' and '.join(groups.names)}"
            if self.factorised
            else "one for each draw"
        )
        lines = [
            f"weights of {chains} chains of {count} draws: {each}",
            f"log density as sampled, less the exact one: standard deviation {float(np.max(self.error)):.3g} nats{many}",
            f"Pareto k{many}: {worst:.2f}, {'below' if worst < self.threshold else 'not below'} {self.threshold:.2f}, up to "
            f"which {total} draws can be weighted",
            f"effective draws{many}: {kept:.0f} of {total}",
        ]
        lines += self._troubles()
        lines += [f"corrected at site {name}: {what}" for name, what in self.correction.errors.items()]
        lines.append(
            "not corrected: what the flow did not learn of its data, and what no draw came near; a mode that the sampled "
            "posterior lacks has no draws to weigh"
        )
        return "\n".join(lines)

    def _troubles(self) -> list[str]:
        """Why the weighted means are not to be trusted, each reason with a remedy."""
        troubles = []
        shapes, sizes = np.asarray(self.pareto_k), np.asarray(self.effective_sample_size)
        if not self.reliable:
            bad, name = int(np.sum(shapes >= self.threshold)), next(iter(self.correction.targets))
            whose = f"{bad} of {shapes.size} groups are above: their" if self.factorised else "these"
            troubles.append(
                f"{whose} weighted means cannot be trusted. NUTS with the exact density samples the posterior, and so "
                f"does delayed acceptance. Fix: kernel = fd.DelayedAcceptance(numpyro.infer.NUTS(model), {{{name!r}: density}})"
            )
        if sizes.min() < FEW:
            few = f"{int(np.sum(sizes < FEW))} of {sizes.size} groups have" if self.factorised else "there are"
            troubles.append(
                f"{few} fewer than {FEW} effective draws: means are known to {1.0 / math.sqrt(sizes.min()):.2g} posterior "
                "standard deviations. More draws help if arviz.rhat is near 1 for those sampled; if not, chains may be where "
                "only the sampled density has mass, and a density closer to the exact one is needed"
            )
        return troubles

    def _note(self) -> str:
        sites = "; ".join(f"{name}: {what}" for name, what in self.correction.errors.items())
        each = "by group" if self.factorised else "by draw"
        return f"resampled {each} to the exact density ({sites}); Pareto k {float(np.max(self.pareto_k)):.2f}"


def reweight(
    key: Key,
    posterior: Any,
    model: Callable,
    exact: Mapping[str, Learned],
    *,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Reweighted:
    r"""Weight a posterior that was sampled with a learned or amortized density to the one under the exact density.

    The flow that a learned density has is known exactly; its log density is dear. It is computed once for each draw, and the
    draws weighted by the ratio, $w_i \propto \prod_s p_s/\tilde p_s$ over the sites s of `exact`, by Pareto-smoothed importance
    sampling (arviz's). This corrects the error of a learned or estimated divergence, of an amortisation, and of a solver where
    `exact` has a finer one. It cannot correct what the flow did not learn of its data.

    A warning says where the weights leave too few effective draws, or cannot be trusted. Then `DelayedAcceptance` samples the
    exact posterior.

    Args:
        key: JAX PRNG key of the resampling.
        posterior: what was sampled, in arviz's form: `InferenceData`, `DataTree`, or the `Dataset` of the posterior group.
        model: the numpyro model that was sampled, with the density that it was sampled with.
        exact: by name of a site, latent or observed, the density that should have stood there: a `FlowDensity` or an
            `AmortizedDensity`, of whose flow the exact divergence is taken, with its solver. It is given the contexts that the
            site's density has in the model.
        model_args: arguments of the model.
        model_kwargs: keyword arguments of the model.
        progress: whether to show a bar.

    Returns:
        The weights, their diagnostics, weighted means, and `resample()`.

    Raises:
        TypeError: if `key` is no key, `posterior` not in arviz's form, or `exact` holds no learned densities.
        ValueError: if a site of `exact` does not have such a density in the model, the posterior lacks a latent site or has it in
            another shape or too few draws, or a density is not finite at a draw.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25.
    """
    caller = "reweight"
    check_key(caller, key)
    draws = draws_of(caller, posterior)
    corrected = correction(caller, model, model_args, model_kwargs, exact)
    chains, count = _check_draws(draws, corrected)
    flat = {name: draws[name].reshape(-1, *draws[name].shape[2:]) for name in corrected.latent}
    pair_key, key = jr.split(key)
    factorised, shared = _factorised(pair_key, corrected, flat)
    function = corrected.by_group if factorised else corrected.total
    ratios = over_draws(function, flat, corrected.chunk, "exact log density", progress).astype(np.float64)
    _check_ratios(ratios, chains)

    groups = ratios.shape[1:]
    columns = ratios.reshape(chains, count, -1)
    fits = [_weighed(columns[..., group]) for group in range(columns.shape[-1])]
    log_weights, shapes, sizes, errors = (np.stack(part, axis=-1) for part in zip(*fits, strict=True))
    if factorised:
        values = {name: event_dim for name, (_, event_dim) in corrected.latent.items()} | shared
        values = {name: event_dim for name, event_dim in values.items() if name in draws}
    else:
        values = dict.fromkeys(draws, 0)
    result = Reweighted(
        log_weights=log_weights.reshape(chains, count, *groups),
        pareto_k=shapes.reshape(groups) if factorised else float(shapes[0]),
        effective_sample_size=sizes.reshape(groups) if factorised else float(sizes[0]),
        error=errors.reshape(groups) if factorised else float(errors[0]),
        factorised=factorised,
        threshold=min(1.0 - 1.0 / np.log10(chains * count), 0.7),
        posterior=posterior,
        correction=corrected,
        values=values,
        key=key,
    )
    troubles = result._troubles()
    if troubles:
        warn(
            f"Pareto k is {float(np.max(shapes)):.2f}, and {chains * count} draws can be weighted up to {result.threshold:.2f}; "
            f"effective draws: {float(np.min(sizes)):.0f}; {'; '.join(troubles)}"
        )
    return result


def _check_draws(draws: dict[str, np.ndarray], corrected: Correction) -> tuple[int, int]:
    """Numbers of chains and draws."""
    missing = [name for name in corrected.latent if name not in draws]
    if missing:
        raise ValueError(
            f"reweight expected `posterior` to have every latent site of `model`; it lacks {missing} and has {list(draws)}. A "
            "site that was summed over or left out of the run cannot be weighted. "
            f"Fix: {AGAIN}"
        )
    for name, (shape, _) in corrected.latent.items():
        if draws[name].shape[2:] != shape:
            raise ValueError(
                f"reweight expected {name!r} in `posterior` with shape (chain, draw, {', '.join(map(str, shape))}), as in "
                f"`model`; got {draws[name].shape}. `model_args` and `model_kwargs` are those of the run. Fix: {AGAIN}"
            )
    chains, count = next(iter(draws.values())).shape[:2]
    if chains * count < LEAST or count < FEWEST:
        raise ValueError(
            f"reweight expected `posterior` with at least {LEAST} draws, since the tail of the weights is fitted, and "
            f"{FEWEST} in each chain, since its correlation is; got {chains * count} in {chains} chains. "
            "Fix: mcmc = numpyro.infer.MCMC(mcmc.sampler, num_warmup=500, num_samples=500); mcmc.run(key); "
            f"{AGAIN}"
        )
    return chains, count


def _check_ratios(ratios: Float[np.ndarray, "draws *groups"], chains: int) -> None:
    bad = np.isnan(ratios) | (ratios == np.inf)
    if bad.any() or np.any(np.all(np.isneginf(ratios), axis=0)):
        raise ValueError(
            f"reweight expected densities that are finite at the draws; the log ratio is not at {int(bad.sum())} of {bad.size} "
            f"(infinite at {int(np.isinf(ratios).sum())}). The density that was sampled is 0 or nan there. "
            f"Fix: {finite_chains(bad.reshape(chains, len(bad) // chains, -1).any(axis=2))}"
        )


def _factorised(key: Key, corrected: Correction, flat: dict[str, np.ndarray]) -> tuple[bool, dict[str, int]]:
    """Whether groups have independent posteriors, and the deterministic sites that each belong to one."""
    if not corrected.groups.names:
        return False, {}
    total = len(next(iter(flat.values())))
    rows = np.asarray(jr.randint(key, (corrected.bits, 2), 0, total))
    pairs = [({n: v[i] for n, v in flat.items()}, {n: v[j] for n, v in flat.items()}) for i, j in rows]
    return corrected.independent(pairs)


def _weighed(ratios: Float[np.ndarray, "chain draw"]) -> tuple[np.ndarray, float, float, float]:
    """Log weights, Pareto k, effective sample size and the error in nats."""
    finite = np.maximum(ratios, ratios[np.isfinite(ratios)].min())
    efficiency = min(1.0, float(effective(finite)) / ratios.size)
    if np.ptp(ratios) < EVEN:
        log_weights, shape = ratios - logsumexp(ratios), 0.0
    else:
        flat, shape = smoothed(ratios.reshape(-1), efficiency)
        log_weights = flat.reshape(ratios.shape)
    size = efficiency / np.sum(np.exp(2.0 * log_weights))
    return log_weights, shape, float(size), float(np.std(finite))


def _rows(weights: Float[np.ndarray, " draws"], parts: Float[np.ndarray, " wanted"]) -> Int[np.ndarray, " wanted"]:
    """Numbers of draws: where a random point of each equal part of the total weight lies."""
    edges = np.cumsum(weights)
    points = (np.arange(len(parts)) + parts) / len(parts) * edges[-1]
    return np.minimum(np.searchsorted(edges, points, side="right"), len(weights) - 1)
