"""Simulation-based calibration: ranks of the true values among posterior draws over simulated data sets."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer import MCMC, NUTS
from tqdm.auto import tqdm

from .._blocks import blocks_of
from .._checks import check_count, check_key, check_model
from .._typing import Array, Key
from .ranks import MIN_DRAWS, MIN_SIMULATIONS, Ranks, ranks_among, references_and_units

THINNING = 5
"""Number of sampler draws for each draw that the truth is ranked among, since ranks are only uniform among independent draws."""
BATCH_SIZE = 25
"""Number of data sets whose posteriors are sampled at once."""


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
        The ranks, with a `summary()`, for `fd.plots.plot_ranks`.

    Raises:
        TypeError: if `key` is not a key, or `model` or `simulator` cannot be called.
        ValueError: if a number is out of range, or the sites of `model` and `simulator` do not agree.

    Examples:
        >>> ranks = fd.simulation_based_calibration(key, model, model_kwargs={"y": observed})
        >>> print(ranks.summary())
    """
    caller = "simulation_based_calibration"
    check_key(caller, key)
    simulations = check_count(caller, "simulations", simulations, least=MIN_SIMULATIONS, fix=100)
    draws = check_count(caller, "draws", draws, least=MIN_DRAWS, fix=99)
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

    def ranked(
        key: Key, values: dict[str, Any], references: dict[str, Any], units: dict[str, Any]
    ) -> tuple[dict[str, Array], Array]:
        data = {name: values[name] for name in observed}
        mcmc = MCMC(
            NUTS(handlers.condition(handlers.uncondition(bound), data=data)),
            num_warmup=warmup,
            num_samples=THINNING * draws,
            progress_bar=False,
        )
        run_key, rank_key = jr.split(key)
        mcmc.run(run_key)
        sampled = mcmc.get_samples()
        thinned = {name: sampled[name][THINNING - 1 :: THINNING] for name in latent}
        return ranks_among(rank_key, thinned, {name: values[name] for name in latent}, references, units)

    simulate_key, sample_key, reference_key = jr.split(key, 3)
    truths = jax.device_get(jax.jit(jax.vmap(simulate))(jr.split(simulate_key, simulations)))
    references, units = references_and_units(reference_key, {name: truths[name] for name in latent})
    many, keys = jax.jit(jax.vmap(ranked, in_axes=(0, 0, 0, None))), jr.split(sample_key, simulations)
    together, parts = min(BATCH_SIZE, simulations), []
    with tqdm(total=simulations, desc=caller, unit="data set", disable=not progress) as bar:
        for rows in blocks_of(simulations, together):
            batch = jax.tree.map(partial(np.take, indices=rows, axis=0), (truths, references))
            parts.append(jax.device_get(many(keys[rows], *batch, units)))
            bar.update(min(together, simulations - bar.n))
    ranks, coverage = jax.tree.map(lambda *each: np.concatenate(each)[:simulations], *parts)
    return Ranks({name: ranks[name] for name in latent}, draws, coverage)


def _sites(caller: str, model: Callable, source: Callable) -> tuple[list[str], list[str]]:
    """Names of the latent and observed sites of a model. The source of data must have them with the same shapes."""
    found: dict[str, dict[str, Any]] = {}
    own = handlers.trace(handlers.seed(model, jr.key(0)))
    theirs = handlers.trace(handlers.seed(source, jr.key(0)))
    jax.eval_shape(lambda: found.update(model=own.get_trace(), source=theirs.get_trace()))
    sites = {name: site for name, site in found["model"].items() if site["type"] == "sample"}
    observed = [name for name, site in sites.items() if site["is_observed"] and not isinstance(site["fn"], dist.Unit)]
    latent = [name for name, site in sites.items() if not site["is_observed"]]
    within = [name for name in observed if sites[name].get("_control_flow_done")]
    if within:
        raise ValueError(
            f"{caller} expected a model whose data can be simulated anew; got {within} observed within a `scan`, whose later "
            "steps follow the data. An amortized posterior of the model without its data can be checked. "
            f"Fix: fd.fit_posterior(key, model, observed={within})[0].check(key)"
        )
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
