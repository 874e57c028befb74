"""Simulation-based calibration: ranks of the true values among posterior draws over simulated data sets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from scipy.stats import chisquare
from tqdm.auto import tqdm

from .._checks import check_count, check_key, check_model
from .._display import Row, html_table, one_line
from .._typing import Array, Float, Int, Key

THINNING = 5
"""Number of sampler draws for each draw that the truth is ranked among, since ranks are only uniform among independent draws."""
NUM_BINS = 10
"""Number of bins of the chi-squared test."""
BATCH_SIZE = 25
"""Number of data sets whose posteriors are sampled at once."""
FALSE_ALARM_RATE = 0.01
"""Probability that any site of a calibrated model is called bad."""

EXPECTED = "0.5 expected"
"""Expected mean rank, as a fraction of the number of draws."""
ADVICE = (
    "Posteriors are too wide, too narrow or biased: the learned density differs from that of the simulator, or the sampler has "
    "not converged. Learning from more simulations can help. Fix: fd.diagnose(key, density, samples)"
)
"""Advice for ranks that are not uniform."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of the true values among posterior draws, over many simulated data sets.

    Attributes:
        ranks: number of draws below the truth, by latent site, shape `(simulations, *shape)`.
        draws: number of draws of each posterior. For correct posteriors, ranks are uniform on 0, ..., `draws`.

    Examples:
        >>> ranks = fd.simulation_based_calibration(key, model, model_kwargs={"y": observed})
        >>> ranks.p_values["theta"]
        >>> ranks.bad
    """

    ranks: dict[str, Int[np.ndarray, "simulations *shape"]]
    draws: int

    @property
    def p_values(self) -> dict[str, Float[np.ndarray, "*shape"]]:
        """P-values of a chi-squared test of uniformity in ten bins, by site, for each element of the site."""
        return {name: np.apply_along_axis(self._p_value, 0, ranks) for name, ranks in self.ranks.items()}

    @property
    def bad(self) -> tuple[str, ...]:
        """Sites with a p-value below the threshold of 0.01, which is divided by the total number of p-values."""
        p_values = self.p_values
        threshold = FALSE_ALARM_RATE / sum(np.size(p) for p in p_values.values())
        return tuple(name for name, p in p_values.items() if np.min(p) < threshold)

    @property
    def conclusion(self) -> str:
        """Verdict in words, such as "1 of 2 sites is bad: theta."."""
        bad, sites = self.bad, f"{len(self.ranks)} site{'' if len(self.ranks) == 1 else 's'}"
        if not bad:
            return f"No fault found in {sites}."
        return f"{len(bad)} of {sites} {'is' if len(bad) == 1 else 'are'} bad: {', '.join(bad)}."

    def summary(self) -> str:
        """Return the verdict in words, a line for each site, and advice about the bad sites."""
        lines = [f"{self.conclusion} {self._origin()}"]
        lines += [
            f"  {name}: mean rank {mean} ({EXPECTED}), smallest p-value {p}, {verdict}"
            for (name, mean, p), verdict in self._rows()
        ]
        return "\n".join(lines + [ADVICE] * bool(self.bad))

    def _origin(self) -> str:
        count = len(next(iter(self.ranks.values())))
        return f"Ranks of the truth among {self.draws} posterior draws, {count} simulated data sets"

    def _rows(self) -> list[Row]:
        return [
            Row(
                (name, f"{float(np.mean(self.ranks[name])) / self.draws:.3f}", f"{float(np.min(p)):.2g}"),
                "bad" if name in self.bad else "good",
            )
            for name, p in self.p_values.items()
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

    def _p_value(self, ranks: np.ndarray) -> float:
        edges = np.linspace(0, self.draws + 1, NUM_BINS + 1)
        counts = np.histogram(ranks, bins=edges)[0]
        # The expected count of a bin is proportional to the number of integers between its edges.
        expected = len(ranks) * np.diff(np.ceil(edges)) / (self.draws + 1)
        return float(chisquare(counts, expected).pvalue)


def simulation_based_calibration(
    key: Key,
    model: Callable,
    *,
    simulator: Callable | None = None,
    simulations: int = 100,
    draws: int = 99,
    warmup: int = 300,
    model_args: tuple = (),
    model_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Ranks:
    """Sample the posteriors of many simulated data sets, and rank the true values among the draws of each posterior.

    If the true values are drawn from the prior and the data from the likelihood, the rank of the truth among independent
    posterior draws is uniform (Talts et al. 2018, arXiv 1804.06788). With `simulator` set to the simulator that a likelihood was
    learned from, this tests the learned density, its log density and the sampler together. Without a simulator, the model
    simulates its own data. This tests the sampler, and whether `log_prob` agrees with the samples of the density.

    Posteriors are sampled with NUTS with one chain each, in batches by `jax.vmap`. The package `simuk` samples one posterior
    after the other, and also supports models of PyMC and Bambi.

    Args:
        key: JAX PRNG key.
        model: numpyro model, called with observed data of the right shapes. The values of the data do not matter.
        simulator: numpyro model with the same sites, called with the same arguments. Its data are drawn even if they are
            observed. By default `model`.
        simulations: number of data sets.
        draws: number of draws of each posterior that the truth is ranked among. Five times as many are sampled.
        warmup: number of warm-up steps for each posterior.
        model_args: arguments of both models.
        model_kwargs: keyword arguments of both models.
        progress: whether to show a bar.

    Returns:
        The ranks, with a `summary()`.

    Raises:
        TypeError: if `key` is not a key, or `model` or `simulator` cannot be called.
        ValueError: if a number is out of range, or the sites of `model` and `simulator` do not agree.

    Examples:
        >>> ranks = fd.simulation_based_calibration(key, model, model_kwargs={"y": observed})
        >>> print(ranks.summary())
    """
    caller = "simulation_based_calibration"
    check_key(caller, key)
    simulations = check_count(caller, "simulations", simulations, least=2 * NUM_BINS, fix=100)
    draws = check_count(caller, "draws", draws, least=NUM_BINS - 1, fix=99)
    warmup = check_count(caller, "warmup", warmup, fix=500)
    check_model(caller, "model", model)
    if simulator is not None:
        check_model(caller, "simulator", simulator)
    kwargs = {} if model_kwargs is None else dict(model_kwargs)
    bound = partial(model, *model_args, **kwargs)
    source = handlers.uncondition(bound if simulator is None else partial(simulator, *model_args, **kwargs))
    latent, observed = _sites(caller, bound, source)

    def simulate(key: Key) -> dict[str, Any]:
        trace = handlers.trace(handlers.seed(source, key)).get_trace()
        return {name: trace[name]["value"] for name in (*latent, *observed)}

    def ranked(key: Key, values: dict[str, Any]) -> dict[str, Any]:
        data = {name: values[name] for name in observed}
        mcmc = MCMC(
            NUTS(handlers.condition(handlers.uncondition(bound), data=data)),
            num_warmup=warmup,
            num_samples=THINNING * draws,
            progress_bar=False,
        )
        mcmc.run(key)
        sampled = mcmc.get_samples()
        return {
            name: rank(jr.fold_in(key, number), sampled[name][THINNING - 1 :: THINNING], values[name])
            for number, name in enumerate(latent)
        }

    def rank(key: Key, sampled: Array, truth: Array) -> Array:
        # Ties, as in a constant or discrete coordinate, are broken at random.
        below, equal = (jnp.sum(each, axis=0) for each in (sampled < truth, sampled == truth))
        return below + jr.randint(key, below.shape, 0, equal + 1)

    simulate_key, sample_key = jr.split(key)
    truths = jax.jit(jax.vmap(simulate))(jr.split(simulate_key, simulations))
    many, keys = jax.jit(jax.vmap(ranked)), jr.split(sample_key, simulations)
    together, parts = min(BATCH_SIZE, simulations), []
    with tqdm(total=simulations, desc=caller, unit="data set", disable=not progress) as bar:
        for start in range(0, simulations, together):
            # Repeat the last data set to fill the batch, so that no second shape is compiled.
            rows = np.minimum(np.arange(start, start + together), simulations - 1)
            parts.append(jax.device_get(many(keys[rows], {name: values[rows] for name, values in truths.items()})))
            bar.update(min(together, simulations - start))
    ranks = jax.tree.map(lambda *each: np.concatenate(each)[:simulations], *parts)
    return Ranks({name: ranks[name] for name in latent}, draws)


def _sites(caller: str, model: Callable, source: Callable) -> tuple[list[str], list[str]]:
    """Names of the latent and observed sites of a model. The source of data must have them with the same shapes."""
    found: dict[str, dict[str, Any]] = {}
    own = handlers.trace(handlers.seed(model, jr.key(0)))
    theirs = handlers.trace(handlers.seed(source, jr.key(0)))
    jax.eval_shape(lambda: found.update(model=own.get_trace(), source=theirs.get_trace()))
    sites = {name: site for name, site in found["model"].items() if site["type"] == "sample"}
    observed = [name for name, site in sites.items() if site["is_observed"] and not isinstance(site["fn"], dist.Unit)]
    latent = [name for name, site in sites.items() if not site["is_observed"]]
    if not observed or not latent:
        raise ValueError(
            f"{caller} expected `model` to have latent and observed sites; got latent {latent} and observed {observed}. "
            f"{_observing(sites)}"
        )
    for name in (*latent, *observed):
        shape = jnp.shape(sites[name]["value"])
        got = jnp.shape(found["source"][name]["value"]) if name in found["source"] else None
        if got != shape:
            raise ValueError(
                f"{caller} expected `simulator` to have site {name!r} with a value of shape {shape}, as in `model`; got "
                f"{'no such site' if got is None else f'shape {got}'}. Without a simulator, the model simulates the data. "
                "Fix: simulator = None"
            )
    return latent, observed


def _observing(sites: dict[str, Any]) -> str:
    """Code for a fix: let a model observe its last site or, if it has only one site, an additional noise site."""
    if len(sites) < 2:
        lines = "prior = model; model = lambda: (prior(), numpyro.sample('noise', dist.Normal(), obs=0.0))"
        return f"With uninformative data, the posterior equals the prior. Fix: {lines}"
    name, site = list(sites.items())[-1]
    data = f"{{{name!r}: jax.numpy.zeros({jnp.shape(site['value'])})}}"
    line = f"model = numpyro.handlers.condition(numpyro.handlers.uncondition(model), {data})"
    return f"Only the shape of the data matters, not their values. Fix: {line}"
