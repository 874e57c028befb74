"""Reweighting a posterior from a learned or amortized density to the exact density."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.random as jr
import numpy as np
from scipy.special import logsumexp

from .._checks import check_key
from .._typing import Float, Key
from .._warnings import warn
from .correction import Correction, Learned, correction, over_draws
from .posterior import POSTERIOR_LINE, effective_sample_size, finite_chains, pareto_smoothed
from .posterior import draws as draws_of
from .reweighted import Reweighted

MIN_TAIL_DRAWS = 25
"""Minimum number of draws for arviz's fit of a generalized Pareto distribution to the tail of the weights."""
MIN_CHAIN_DRAWS = 4
"""Minimum number of draws of a chain for arviz's effective sample size."""
MIN_SPREAD = 1e-3
"""Range of the log ratios, in nats, below which they differ only by rounding and have no tail to fit."""


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
    r"""Reweight a posterior that was sampled with a learned or amortized density to the exact density.

    The exact log density of the flow is known but slow. It is computed once for each draw. Each draw is weighted by the ratio
    of the densities, $w_i \propto \prod_s p_s/\tilde p_s$ over the sites s of `exact`, with the Pareto-smoothed importance
    sampling of arviz. This corrects the error of a learned or estimated divergence, of an amortization, and of a solver if
    `exact` has a finer one. It cannot correct the difference between the flow and the distribution of its training data.

    There is a warning if the weights leave too few effective draws or cannot be trusted. `DelayedAcceptance` then samples the
    exact posterior.

    Args:
        key: JAX PRNG key of the resampling.
        posterior: the sampled posterior in arviz's form: `InferenceData`, `DataTree`, or the `Dataset` of the posterior group.
        model: the numpyro model that was sampled, with the density that it was sampled with.
        exact: the exact density by name of a latent or observed site: a `FlowDensity` or an `AmortizedDensity`. The exact
            divergence of its flow is used, with its solver. It is given the contexts of the density of the site in the model.
        model_args: arguments of the model.
        model_kwargs: keyword arguments of the model.
        progress: whether to show a bar.

    Returns:
        The weights, their diagnostics, weighted means, and `resample()`.

    Raises:
        TypeError: if `key` is not a key, `posterior` is not in arviz's form, or `exact` contains no learned densities.
        ValueError: if a site of `exact` has no learned density with the same events in the model; if the posterior lacks a latent
            site, has one in another shape or has too few draws; or if a density is not finite at a draw.

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25.

    Examples:
        >>> finer = density.with_solver(fd.FixedStep(steps=32))
        >>> repaired = fd.reweight(key, posterior, model, exact={"theta": finer}, model_kwargs={"y": observed})
        >>> print(repaired.summary())
    """
    caller = "reweight"
    check_key(caller, key)
    draws = draws_of(caller, posterior)
    corrected = correction(caller, model, model_args, model_kwargs, exact)
    chains, count = _check_draws(draws, corrected)
    flat = {name: draws[name].reshape(-1, *draws[name].shape[2:]) for name in corrected.latent}
    pair_key, key = jr.split(key)
    factorized, shared = _factorized(pair_key, corrected, flat)
    function = corrected.by_group if factorized else corrected.total
    ratios = over_draws(function, flat, corrected.chunk, "exact log density", progress).astype(np.float64)
    _check_ratios(ratios, chains)

    groups = ratios.shape[1:]
    columns = ratios.reshape(chains, count, -1)
    fits = [_weighed(columns[..., group]) for group in range(columns.shape[-1])]
    log_weights, shapes, sizes, errors = (np.stack(part, axis=-1) for part in zip(*fits, strict=True))
    if factorized:
        values = {name: event_dim for name, (_, event_dim) in corrected.latent.items()} | shared
        values = {name: event_dim for name, event_dim in values.items() if name in draws}
    else:
        values = dict.fromkeys(draws, 0)
    result = Reweighted(
        log_weights=log_weights.reshape(chains, count, *groups),
        pareto_k=shapes.reshape(groups) if factorized else float(shapes[0]),
        effective_sample_size=sizes.reshape(groups) if factorized else float(sizes[0]),
        error=errors.reshape(groups) if factorized else float(errors[0]),
        factorized=factorized,
        threshold=min(1.0 - 1.0 / np.log10(chains * count), 0.7),
        posterior=posterior,
        correction=corrected,
        values=values,
        key=key,
    )
    troubles = result.troubles()
    if troubles:
        warn(
            f"Pareto k is {float(np.max(shapes)):.2f}, and the limit for {chains * count} draws is {result.threshold:.2f}; "
            f"effective draws: {float(np.min(sizes)):.0f}; {'; '.join(troubles)}"
        )
    return result


def _check_draws(draws: dict[str, np.ndarray], corrected: Correction) -> tuple[int, int]:
    """Check the shapes of the draws, and return the numbers of chains and draws."""
    missing = [name for name in corrected.latent if name not in draws]
    if missing:
        raise ValueError(
            f"reweight expected `posterior` to have every latent site of `model`; it lacks {missing} and has {list(draws)}. A "
            "site that was summed over or left out of the run cannot be weighted. "
            f"Fix: {POSTERIOR_LINE}"
        )
    for name, (shape, _) in corrected.latent.items():
        if draws[name].shape[2:] != shape:
            raise ValueError(
                f"reweight expected {name!r} in `posterior` with shape (chain, draw, {', '.join(map(str, shape))}), as in "
                f"`model`; got {draws[name].shape}. Pass the `model_args` and `model_kwargs` of the run. Fix: {POSTERIOR_LINE}"
            )
    chains, count = next(iter(draws.values())).shape[:2]
    if chains * count < MIN_TAIL_DRAWS or count < MIN_CHAIN_DRAWS:
        raise ValueError(
            f"reweight expected `posterior` with at least {MIN_TAIL_DRAWS} draws, to fit the tail of the weights, and "
            f"{MIN_CHAIN_DRAWS} in each chain, to estimate the autocorrelation; got {chains * count} in {chains} chains. "
            "Fix: mcmc = numpyro.infer.MCMC(mcmc.sampler, num_warmup=500, num_samples=500); mcmc.run(key); "
            f"{POSTERIOR_LINE}"
        )
    return chains, count


def _check_ratios(ratios: Float[np.ndarray, "draws *groups"], chains: int) -> None:
    bad = np.isnan(ratios) | (ratios == np.inf)
    if bad.any() or np.any(np.all(np.isneginf(ratios), axis=0)):
        raise ValueError(
            f"reweight expected finite log density ratios at the draws; got {int(bad.sum())} of {bad.size} that are not finite "
            f"({int(np.isinf(ratios).sum())} infinite). The sampled density is 0 or nan at those draws. "
            f"Fix: {finite_chains(bad.reshape(chains, len(bad) // chains, -1).any(axis=2))}"
        )


def _factorized(key: Key, corrected: Correction, flat: dict[str, np.ndarray]) -> tuple[bool, dict[str, int]]:
    """Return whether groups have independent posteriors, and the deterministic sites that belong to single groups."""
    if not corrected.groups.names:
        return False, {}
    total = len(next(iter(flat.values())))
    rows = np.asarray(jr.randint(key, (corrected.bits, 2), 0, total))
    pairs = [({n: v[i] for n, v in flat.items()}, {n: v[j] for n, v in flat.items()}) for i, j in rows]
    return corrected.independent(pairs)


def _weighed(ratios: Float[np.ndarray, "chain draw"]) -> tuple[np.ndarray, float, float, float]:
    """Return the log weights, Pareto k, the effective sample size, and the standard deviation of the log ratios in nats."""
    finite = np.maximum(ratios, ratios[np.isfinite(ratios)].min())
    efficiency = min(1.0, float(effective_sample_size(finite)) / ratios.size)
    if np.ptp(ratios) < MIN_SPREAD:
        log_weights, shape = ratios - logsumexp(ratios), 0.0
    else:
        flat, shape = pareto_smoothed(ratios.reshape(-1), efficiency)
        log_weights = flat.reshape(ratios.shape)
    size = efficiency / np.sum(np.exp(2.0 * log_weights))
    return log_weights, shape, float(size), float(np.std(finite))
