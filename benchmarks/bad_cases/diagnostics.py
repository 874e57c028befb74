"""Diagnostics, corrections of posteriors, and pictures."""

import functools
from typing import Any

import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from numpyro.infer import HMC, MCMC, NUTS

from .case import Deferred, Groups, cases
from .material import (
    BY_NAME,
    CONTEXT,
    DATA,
    GIVEN_LATER,
    KEY,
    NORMAL,
    OTHER,
    PLAIN,
    POSTERIOR,
    draws,
    fd,
    model,
    normal_model,
    sampler,
    with_entry,
)


def subsampled() -> None:
    """A plate that draws its rows."""
    numpyro.sample("theta", PLAIN)
    with numpyro.plate("rows", 10, subsample_size=5):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def unobserved(y: Any = None) -> None:
    """A model that observes what it is given."""
    theta = numpyro.sample("theta", PLAIN)
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


class OwnCheck(fd.checks.AbstractCheck):
    """A check of the user's own, with the result of `measure`."""

    result: Any = None

    name = "own"
    section = "Own"
    needs = ()
    randomized = False

    def figures(self, subject: Any) -> Any:
        """One figure."""
        return (fd.checks.Finding("own.figure", "a figure", "at most", 1.0),)

    def measure(self, key: Any, subject: Any) -> Any:
        """Description of the case."""
        return self.result


class OtherCheck(OwnCheck):
    """A check with another name and the same figure."""

    name = "other"


@functools.cache
def reweighted() -> Any:
    """Weights of a posterior."""
    return fd.reweight(KEY, POSTERIOR, model, {"theta": PLAIN}, progress=False)


NANS = np.full((2, 50, 2), np.nan)
LATER = {"density": GIVEN_LATER, "context": CONTEXT}
OF_POSTERIORS = {
    "density": PLAIN,
    "data": DATA,
    "context": CONTEXT[0],
    "posterior": POSTERIOR,
    "mcmc": Deferred(sampler),
}
NO_POSTERIOR: dict[str, dict[str, Any]] = {
    "an array of draws": {"posterior": DATA},
    "a run of NUTS": {"posterior": Deferred(sampler)},
    "draws with a nan": {"posterior": draws(theta=NANS)},
    "one chain with a nan": {"posterior": draws(theta=np.stack([NANS[0], np.zeros((50, 2))]))},
}
WRONG_EXACT: dict[str, dict[str, Any]] = {
    "`exact` that is a density": {"exact": PLAIN},
    "`exact` that is empty": {"exact": {}},
    "`exact` with a built-in distribution": {"exact": {"theta": NORMAL}},
    "a site that the model lacks": {"exact": {"tau": PLAIN}},
    "a deterministic site": {"exact": {"sum": PLAIN}},
    "a deterministic site beside the right one": {"exact": {"theta": PLAIN, "sum": PLAIN}},
    "a site without a learned density": {"model": normal_model},
    "an observed site without a learned density": {"exact": {"theta": PLAIN, "y": PLAIN}},
    "a density of other events": {"exact": {"theta": OTHER}},
}
WITH_MODEL = OF_POSTERIORS | {"model": model, "exact": {"theta": PLAIN}}

DIAGNOSTICS: Groups = [
    cases(
        "fd.diagnose(key, density, samples, progress=False)",
        {"density": PLAIN, "samples": DATA, "data": DATA, "context": CONTEXT},
        {
            "a built-in distribution": {"density": NORMAL},
            "a model": {"density": PLAIN.model},
            "an expanded density": {"density": PLAIN.expand([3])},
            "an integer for the key": {"key": 0},
            "samples of another shape": {"samples": CONTEXT},
            "samples with a nan": {"samples": with_entry(DATA, np.nan)},
            "samples off the support": {"density": BY_NAME},
            "a conditional density and no `context`": {"density": GIVEN_LATER},
        },
    ),
    cases(
        "fd.diagnose(key, density, samples, context=context, progress=False)",
        LATER | {"samples": DATA},
        {
            "a number for `context`": {"samples": None, "context": 3.0},
            "`context` with fewer rows": {"context": CONTEXT[:-1]},
            "a density with its context, and `context`": {"density": GIVEN_LATER.given(CONTEXT)},
            "`context`, for an unconditional density": {"density": PLAIN},
        },
    ),
    cases(
        "fd.diagnose(key, density, samples, checks=checks, progress=False)",
        {"density": PLAIN, "samples": DATA},
        {
            "one check": {"checks": fd.checks.LogScore()},
            "a class of checks": {"checks": [fd.checks.LogScore]},
            "a number for `checks`": {"checks": 3},
            "a name among checks": {"checks": [OwnCheck(), "tails"]},
            "one check twice": {"checks": [fd.checks.Tails(), fd.checks.Tails(factors=(3.0,))]},
            "two checks with one finding": {"checks": [fd.checks.LogScore(), OtherCheck(), OwnCheck()]},
            "a check of your own that measures a number": {"checks": [fd.checks.LogScore(), OwnCheck(0.5)]},
            "a check of your own that measures an array": {
                "checks": [OwnCheck(({"own.figure": fd.checks.Measured(np.ones(3))}, None))]
            },
        },
    ),
    cases(
        "fd.reweight(key, posterior, model, exact, progress=False)",
        WITH_MODEL,
        {
            "an integer for the key": {"key": 0},
            "a distribution for `model`": {"model": PLAIN},
            **NO_POSTERIOR,
            **WRONG_EXACT,
            "a plate that draws its rows": {
                "model": subsampled,
                "posterior": draws(theta=np.zeros((2, 50, 2)), z=np.zeros((2, 50, 5))),
            },
            "a posterior without the site": {"posterior": draws(mu=np.zeros((2, 50)))},
            "draws of another shape": {"posterior": draws(theta=np.zeros((2, 50, 3)))},
            "ten draws": {"posterior": draws(theta=np.zeros((2, 5, 2)))},
            "variables without chains": {"posterior": xr.Dataset({"theta": (("row", "x"), DATA)})},
            "draws without chains": {"posterior": xr.Dataset({"theta": (("draw", "x"), DATA)})},
            "chains and draws in one axis": {"posterior": POSTERIOR.stack(sample=("chain", "draw"))},
            "a variable without draws beside the others": {"posterior": POSTERIOR.assign(scale=2.0)},
        },
    ),
    cases(
        "reweighted.resample(draws=draws)",
        {"reweighted": Deferred(reweighted)},
        {"`draws=0`": {"draws": 0}, "`draws=1.5`": {"draws": 1.5}},
    ),
    cases(
        "reweighted.expectation(values)",
        {"reweighted": Deferred(reweighted)},
        {"values of too few draws": {"values": np.zeros(10)}, "values without chains": {"values": np.zeros((100, 3))}},
    ),
    *(
        cases(
            "MCMC(fd.DelayedAcceptance(kernel, exact), num_warmup=0, num_samples=1, progress_bar=False).run(key)",
            {"MCMC": MCMC, "model": own, "kernel": NUTS(own), "exact": {"theta": PLAIN}, "density": PLAIN},
            given,
        )
        for own, given in (
            (
                model,
                {
                    "`exact` that is a density": {"exact": PLAIN},
                    "a site that the model lacks": {"exact": {"tau": PLAIN}},
                },
            ),
            (normal_model, {"a site without a learned density": {}}),
        )
    ),
    cases(
        "fd.DelayedAcceptance(kernel, exact)",
        {"model": model, "kernel": NUTS(model), "exact": {"theta": PLAIN}},
        {
            "a model for `kernel`": {"kernel": model},
            "a kernel without a model": {"kernel": HMC(potential_fn=lambda z: 0.0)},
            "`steps=0`": {"steps": 0},
            "`steps=1.5`": {"steps": 1.5},
        },
    ),
    cases(
        "fd.simulation_based_calibration(key, model, simulations=20, draws=9, warmup=1, progress=False)",
        {"model": normal_model, "density": NORMAL},
        {
            "an integer for the key": {"key": 0},
            "a number for `model`": {"model": 3},
            "a density for `model`": {"model": PLAIN},
            "a model that observes nothing": {"model": unobserved},
            "a model with one site": {"model": lambda: numpyro.sample("theta", NORMAL)},
            "a simulator without one of the sites": {"simulator": lambda: numpyro.sample("theta", NORMAL)},
        },
    ),
    cases(
        "fd.simulation_based_calibration(key, model, simulations=simulations, draws=draws, warmup=warmup, progress=False)",
        {"model": normal_model, "simulations": 20, "draws": 9, "warmup": 1},
        {"`simulations=5`": {"simulations": 5}, "`draws=2`": {"draws": 2}, "`warmup=0.5`": {"warmup": 0.5}},
    ),
    cases(
        "fd.check_support(posterior, density)",
        OF_POSTERIORS,
        {
            "a built-in distribution": {"density": NORMAL},
            **NO_POSTERIOR,
            "a density of many contexts": {"density": GIVEN_LATER.given(CONTEXT)},
            "a conditional density without its context": {"density": GIVEN_LATER},
            "a site that is not there": {"site": "mu"},
            "no variable of the right shape": {"posterior": draws(mu=np.zeros((2, 50)))},
            "data of another shape": {"data": CONTEXT},
        },
    ),
]

REPORT = fd.results.FitReport({}, {})

PICTURES: Groups = [
    cases(
        "fd.plots.plot_density(key, density, data)",
        {"density": PLAIN, "data": DATA, "context": CONTEXT[0]},
        {
            "a built-in distribution": {"density": NORMAL},
            "a conditional density without its context": {"density": GIVEN_LATER},
            "data of another shape": {"data": CONTEXT},
            "one name for two coordinates": {"names": ["x"]},
            "an integer for the key": {"key": 0},
            "a coordinate that is not there": {"coordinates": "z"},
            "no coordinates": {"coordinates": []},
            "one pair of axes for four panels": {"axes": [None]},
        },
    ),
    cases(
        "fd.plots.plot_errors(diagnosis)",
        {"density": PLAIN},
        {
            "a report of a fit": {"diagnosis": REPORT},
            "a diagnosis without tails": {"diagnosis": fd.results.Diagnosis((), {}, 0.0)},
        },
    ),
    cases(
        "fd.plots.plot_residuals(residuals)",
        {"density": PLAIN, "data": DATA},
        {"a report without residuals": {"residuals": REPORT}, "a density": {"residuals": PLAIN}},
    ),
    cases("fd.plots.plot_training(report)", {"data": DATA}, {"a density": {"report": PLAIN}}),
    cases(
        "fd.plots.plot_prior_posterior(key, density, posterior)",
        OF_POSTERIORS,
        {**NO_POSTERIOR, "a site that is not there": {"site": "mu"}},
    ),
    cases(
        "fd.plots.plot_ranks(ranks)",
        {"model": normal_model},
        {
            "a density": {"ranks": PLAIN},
            "more elements than panels": {
                "ranks": fd.results.Ranks({"z": np.zeros((40, 25), int)}, 19, np.zeros(40, int))
            },
        },
    ),
]
