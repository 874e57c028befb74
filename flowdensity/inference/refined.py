"""Refining draws of a learned posterior to the exact posterior of the model."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro.infer import MCMC, NUTS, init_to_value

from .._display import Row, html_table, one_line
from .._typing import Array, Float, Int, Key
from ..data.draws import as_posterior
from ..diagnostics.posterior import effective_sample_size, pareto_smoothed, rhat
from ..distributions.flow import FlowDensity
from ..distributions.learned import exact_density
from .joint import JointModel

OVERSAMPLING, MIN_WEIGHTED = 10, 1_000
"""Number of weighted draws for each draw of the result, and the smallest number. With ten, hardly any draw is repeated."""
MAX_PARETO_K = 0.7
"""Largest Pareto k at which weighted means can be trusted, for many draws (Vehtari et al. 2024)."""
CHAINS, WARMUP, MIN_DRAWS = 4, 500, 500
"""Number of chains of NUTS, of their warm-up steps, and the smallest number of draws of a chain. With fewer, R-hat is noisy."""
MIN_KEPT = 0.9
"""Weights are also accepted if their effective sample size is this fraction of the draws. The tail of nearly equal weights says
nothing, and its Pareto k can be large."""
MAX_R_HAT = 1.01
"""Largest R-hat of chains that have mixed (Vehtari et al. 2021, arXiv 1903.08008)."""
RIDGE = 1e-6
"""Fraction of the variances of the draws that is added to them where they whiten the coordinates of NUTS."""


@dataclass(frozen=True, eq=False)
class Refined:
    """The exact posterior of a model for one data set, with the figures that say how it was obtained.

    Attributes:
        posterior: the draws in arviz's form. Weights give a single chain of independent draws, for which
            `az.summary(refined.posterior, kind="stats")` leaves out R-hat; NUTS gives four chains.
        method: "weights" if the draws of the learned posterior were weighted, "NUTS" if a sampler was started from them.
        pareto_k: Pareto k of the weights; infinite if the model's density is zero at all draws. Weights are used if it is below
            `threshold` and they keep as many effective draws as were asked for, or if they keep nine tenths of the draws.
        threshold: value of the Pareto k above which the weights cannot be trusted.
        effective_draws: effective sample size: of the weights, or the smallest one of the chains.
        r_hat: largest R-hat of the chains; None without chains.
        divergences: number of divergent transitions of NUTS; None without chains.

    Examples:
        >>> amortized, _ = fd.fit_posterior(key, model, (observed,), observed="y", num_simulations=1000)
        >>> refined = amortized.refine(key, {"y": observed})
        >>> refined.method, refined.pareto_k
        >>> az.summary(refined.posterior, kind="stats")
    """

    posterior: Any
    method: Literal["weights", "NUTS"]
    pareto_k: float
    threshold: float
    effective_draws: float
    r_hat: float | None = None
    divergences: int | None = None

    @property
    def reliable(self) -> bool:
        """Whether the weights can be trusted, or the chains have mixed without divergent transitions."""
        if self.r_hat is None:
            return True  # weights that cannot be trusted are not used
        return self.r_hat <= MAX_R_HAT and not self.divergences

    @property
    def conclusion(self) -> str:
        """Verdict in words."""
        k = f"Pareto k {self.pareto_k:.2f}, threshold {self.threshold:.2f}"
        size = f"{self.effective_draws:.0f} effective draws"
        if self.r_hat is None:
            return f"The learned posterior was corrected by weights: {k}; {size} before resampling."
        found = f"{size}, R-hat {self.r_hat:.3f}, {self.divergences} divergent transitions"
        doubt = "" if self.reliable else ". The chains cannot be trusted: run NUTS on the model with more warm-up"
        return f"The weights of the learned posterior leave too little ({k}), so NUTS sampled the posterior: {found}{doubt}."

    def summary(self) -> str:
        """Return the verdict in words."""
        return self.conclusion

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        rows = [
            Row(("method", self.method)),
            Row(("Pareto k", f"{self.pareto_k:.2f}, threshold {self.threshold:.2f}")),
            Row(("effective draws", f"{self.effective_draws:.0f}")),
        ]
        verdict = "good" if self.reliable else "bad"
        return html_table("Refined posterior", self.conclusion, rows, verdict=verdict)


def refine(
    key: Key,
    density: FlowDensity,
    joint: JointModel,
    data: dict[str, np.ndarray],
    num_samples: int,
    progress: bool,
) -> Refined:
    """Weight draws of a learned posterior by the joint density of the model, or start NUTS from them.

    Args:
        key: JAX PRNG key.
        density: learned posterior given the data.
        joint: the model.
        data: the data, whose absent rows are NaN.
        num_samples: number of draws of the result.
        progress: whether NUTS shows a bar.
    """
    draw_key, choice_key, start_key, chain_key = jr.split(key, 4)
    count = max(OVERSAMPLING * num_samples, MIN_WEIGHTED)
    # The error of a learned divergence would enter the weights, and no diagnostic of the weights would show it.
    events, [log_densities] = exact_density(density).sample_with_intermediates(draw_key, (count,))
    latents = density.unpack(events)
    observed = {name: jnp.asarray(value, float) for name, value in data.items()}
    ratios = np.asarray(joint.log_densities(latents, observed), np.float64) - np.asarray(log_densities, np.float64)
    ratios = np.where(np.isfinite(ratios), ratios, -np.inf)
    threshold, pareto_k = min(1.0 - 1.0 / math.log10(count), MAX_PARETO_K), math.inf
    log_weights = np.full(count, -math.log(count))
    if np.isfinite(ratios).any():
        log_weights, pareto_k = pareto_smoothed(ratios - np.max(ratios), 1.0)
    size = float(1.0 / np.sum(np.exp(2.0 * log_weights))) if np.isfinite(pareto_k) else 0.0
    if size >= MIN_KEPT * count or (pareto_k < threshold and size >= num_samples):
        order = systematic(choice_key, np.exp(log_weights), num_samples)
        chosen = {name: np.asarray(value)[None, order] for name, value in latents.items()}
        return Refined(as_posterior(chosen), "weights", pareto_k, threshold, size)
    # Four different draws among the likelier ones: the square roots of the weights are less extreme.
    gumbel = np.asarray(jr.gumbel(start_key, (count,)), np.float64)
    starts = np.argsort(-(0.5 * np.maximum(log_weights, -1e6) + gumbel))[:CHAINS]
    return _sampled(chain_key, joint, observed, latents, starts, num_samples, pareto_k, threshold, progress)


def systematic(key: Key, weights: Float[np.ndarray, " draws"], wanted: int) -> Int[np.ndarray, " wanted"]:
    """Indices of draws in random order, each expected `wanted` times its weight. Weights below 1 / `wanted` are not repeated."""
    order_key, start_key, shuffle_key = jr.split(key, 3)
    order = np.asarray(jr.permutation(order_key, len(weights)))
    ends = np.cumsum(weights[order])
    points = (np.arange(wanted) + float(jr.uniform(start_key))) / wanted * ends[-1]
    chosen = order[np.minimum(np.searchsorted(ends, points, side="right"), len(weights) - 1)]
    return chosen[np.asarray(jr.permutation(shuffle_key, wanted))]


def _sampled(
    key: Key,
    joint: JointModel,
    observed: dict[str, Array],
    latents: dict[str, Array],
    starts: np.ndarray,
    num_samples: int,
    pareto_k: float,
    threshold: float,
    progress: bool,
) -> Refined:
    """The posterior by NUTS, with chains that start at some of the latent values.

    The chains move in coordinates that are whitened by the mean and the covariance of the latent values.
    """
    free = np.asarray(jax.vmap(joint.flattened)(latents), np.float64)
    location, covariance = free.mean(axis=0), np.atleast_2d(np.cov(free, rowvar=False))
    root = np.linalg.cholesky(covariance + RIDGE * np.diag(np.diagonal(covariance)) + 1e-30 * np.eye(len(location)))
    white = np.linalg.solve(root, (free[starts] - location).T).T
    wanted = -(-num_samples // CHAINS)
    mcmc = _sampler(joint, len(location), max(wanted, MIN_DRAWS), progress)
    arguments = observed, jnp.asarray(location, float), jnp.asarray(root, float)
    mcmc.run(key, *arguments, init_params={"white": jnp.asarray(white, float)}, extra_fields=("diverging",))
    draws = {
        name: np.asarray(value)
        for name, value in mcmc.get_samples(group_by_chain=True).items()
        if name in joint.latents
    }
    size = min(float(np.min(effective_sample_size(value))) for value in draws.values())
    r_hat = max(float(np.max(rhat(value))) for value in draws.values())
    divergences = int(np.sum(np.asarray(mcmc.get_extra_fields()["diverging"])))
    spread = np.linspace(0, max(wanted, MIN_DRAWS) - 1, wanted).astype(int)
    kept = {name: value[:, spread] for name, value in draws.items()}
    return Refined(as_posterior(kept), "NUTS", pareto_k, threshold, size, r_hat, divergences)


@lru_cache(maxsize=8)
def _sampler(joint: JointModel, dim: int, draws: int, progress: bool) -> MCMC:
    """NUTS for the posterior of a model, which is compiled once for all data sets."""
    return MCMC(
        NUTS(joint.whitened, init_strategy=init_to_value(values={"white": jnp.zeros(dim)})),
        num_warmup=WARMUP,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="vectorized",
        progress_bar=progress,
        jit_model_args=True,
    )
