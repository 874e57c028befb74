"""Distributions, named sites, and guides."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
from numpyro import handlers
from numpyro.infer import SVI

from .case import Groups, cases
from .material import (
    AMORTIZED,
    BY_NAME,
    CONTEXT,
    CONTEXT_BY_NAME,
    DATA,
    FIELD,
    GIVEN_LATER,
    KEY,
    NETWORK,
    PLAIN,
    SIMPLEX,
    WITH_VECTOR,
    fd,
    model,
    normal_model,
)

GOOD = {"data": DATA, "density": PLAIN, "context": CONTEXT[0]}
TOO_WIDE = jnp.array([[0.0, 1.0, 2.0]])


def started(guide: Any) -> Any:
    """Start variational inference with a guide."""
    return SVI(normal_model, guide, optax.adam(1e-3), fd.PathGradientELBO()).init(KEY)


def seeded() -> Any:
    """The inside of a model that has drawn nothing yet."""
    return handlers.seed(rng_seed=0)


@contextlib.contextmanager
def after_mu() -> Iterator[None]:
    """The inside of a model that has a site "mu"."""
    with handlers.trace(), seeded():
        numpyro.sample("mu", dist.Normal(0.0, 1.0))
        yield


IN_MODEL = {"handlers": handlers, "data": DATA, "name": "joint", "density": BY_NAME}

DENSITIES: Groups = [
    cases(
        "fd.FlowDensity(model)",
        GOOD | {"model": PLAIN.model},
        {
            "a network for `model`": {"model": fd.networks.ResidualMLP(KEY, 2)},
            "a density for `model`": {"model": PLAIN},
            'divergence="exact"': {"divergence": "exact"},
            "`solver=16`": {"solver": 16},
            "`context` for an unconditional model": {"context": CONTEXT},
        },
    ),
    cases(
        "density.given(context)",
        GOOD,
        {
            "a context of another shape": {"density": GIVEN_LATER, "context": CONTEXT[:, :2]},
            "a context with its axes swapped": {"density": GIVEN_LATER, "context": CONTEXT.T},
            "a context, for an unconditional density": {"context": CONTEXT[0]},
            "text": {"density": GIVEN_LATER, "context": "control"},
            "complex numbers": {"density": GIVEN_LATER, "context": CONTEXT + 1j},
            "names, for a density that knows none": {"density": GIVEN_LATER, "context": {"a": 0.0, "b": 1.0, "c": 2.0}},
            "a name missing": {"density": CONTEXT_BY_NAME, "context": {"a": 0.0}},
            "a name too many": {"density": CONTEXT_BY_NAME, "context": {"a": 0.0, "b": 1.0, "c": 2.0}},
            "a name misspelled": {"density": CONTEXT_BY_NAME, "context": {"a": 0.0, "B": 1.0}},
            "batch axes that do not broadcast": {
                "density": CONTEXT_BY_NAME,
                "context": {"a": np.zeros(2), "b": np.zeros(3)},
            },
        },
    ),
    cases("density.with_divergence(divergence)", GOOD, {"a name": {"divergence": "exact"}}),
    cases("density.with_solver(solver)", GOOD, {"a number of steps": {"solver": 32}}),
    cases(
        "density.sample(key, sample_shape)",
        GOOD | {"sample_shape": (10,)},
        {
            "an integer for the key": {"key": 0},
            "an integer for `sample_shape`": {"sample_shape": 10},
            "a list for `sample_shape`": {"sample_shape": [10.0]},
            "a conditional density without its context": {"density": GIVEN_LATER},
        },
    ),
    cases(
        "density.log_prob(value)",
        GOOD,
        {
            "events with a column too many": {"value": TOO_WIDE},
            "events in columns": {"value": jnp.zeros((2, 60))},
            "numbers": {"value": jnp.zeros(60)},
            "text": {"value": [["a", "b"]]},
            "complex numbers": {"value": jnp.zeros((60, 2), complex)},
            "a dict, in place of `density.pack` of it": {"density": BY_NAME, "value": {"mu": 0.0, "tau": 1.0}},
            "a dict with a name missing": {"density": BY_NAME, "value": {"mu": 0.0}},
            "a dict, for a density without names": {"value": {"x": DATA[:, 0], "y": DATA[:, 1]}},
            "a DataFrame": {"density": BY_NAME, "value": pd.DataFrame({"mu": DATA[:, 0], "tau": np.exp(DATA[:, 1])})},
            "a DataFrame, for a density without names": {"value": pd.DataFrame(DATA, columns=["x", "y"])},
            "a conditional density without its context": {"density": GIVEN_LATER, "value": DATA},
        },
    ),
    cases(
        "density.from_base(noise)",
        GOOD,
        {
            "text": {"noise": "a"},
            "noise of another dimension": {"noise": jnp.zeros(3)},
            "a conditional density without its context": {"density": GIVEN_LATER, "noise": jnp.zeros(2)},
        },
    ),
    cases(
        "density.to_base(value)",
        GOOD,
        {
            "events of another shape": {"value": jnp.zeros(3)},
            "a conditional density without its context": {"density": GIVEN_LATER, "value": DATA},
        },
    ),
    cases(
        "density.pack(values)",
        {"density": BY_NAME},
        {
            "a density without names": {"density": PLAIN, "values": {"mu": 0.0, "tau": 1.0}},
            "a name missing": {"values": {"mu": 0.0}},
            "a name too many": {"values": {"mu": 0.0, "tau": 1.0, "nu": 2.0}},
            "a number for a vector": {"density": WITH_VECTOR, "values": {"v": 0.0, "w": 1.0}},
            "a vector with its axes swapped": {
                "density": WITH_VECTOR,
                "values": {"v": np.zeros((3, 10)), "w": np.ones(10)},
            },
            "axes that do not broadcast": {"values": {"mu": np.zeros(2), "tau": np.ones(3)}},
            "text": {"values": {"mu": 0.0, "tau": "one"}},
            "an array": {"values": np.zeros(2)},
        },
    ),
    cases(
        "density.unpack(event)",
        {"density": BY_NAME},
        {
            "a density without names": {"density": PLAIN, "event": jnp.zeros(2)},
            "an event of another shape": {"event": jnp.zeros(3)},
            "a dict": {"event": {"mu": 0.0, "tau": 1.0}},
        },
    ),
    cases(
        "density.sample_diffusion(key)",
        GOOD,
        {
            "a model without a score": {"density": fd.FlowDensity(FIELD)},
            "an integer for the key": {"key": 0},
            "an integer for `sample_shape`": {"sample_shape": 10},
            "`steps=0`": {"steps": 0},
            "`steps=7.5`": {"steps": 7.5},
            "`strength=-1`": {"strength": -1.0},
            "text for `strength`": {"strength": "1"},
            "`strength` of nan": {"strength": np.nan},
            "a conditional density without its context": {"density": GIVEN_LATER},
        },
    ),
    cases(
        "fd.AmortizedDensity(network, flow)",
        {"network": NETWORK, "flow": PLAIN, "density": PLAIN, "data": DATA},
        {"a density for `network`": {"network": PLAIN}, "a model for `flow`": {"flow": PLAIN.model}},
    ),
    cases(
        "density.log_prob(value)",
        {"density": AMORTIZED},
        {"events with a column too many, for an amortized density": {"value": TOO_WIDE}},
    ),
    cases(
        "density.with_divergence(divergence)",
        {"density": AMORTIZED},
        {"an amortized density, which integrates no divergence": {"divergence": fd.ExactDivergence()}},
    ),
    cases(
        "density.sample(key, sample_shape)",
        {"density": AMORTIZED},
        {"an integer for `sample_shape`, for an amortized density": {"sample_shape": 10}},
    ),
    cases(
        "density.given(context)",
        {"density": AMORTIZED, "context": CONTEXT[0]},
        {"a context, for an unconditional amortized density": {}},
    ),
    cases(
        "fd.sample_sites(name, density)",
        IN_MODEL,
        {
            "a built-in distribution": {"density": dist.Normal(0.0, 1.0)},
            "a density without names": {"density": PLAIN},
            "a name that one of the density's sites has": {"name": "mu"},
        },
        within=seeded,
    ),
    cases(
        "fd.sample_sites(name, density)",
        IN_MODEL,
        {"a model that has a site of the name of one of the density's": {}},
        within=after_mu,
    ),
    cases(
        "handlers.condition(lambda: fd.sample_sites(name, density), data)()",
        IN_MODEL,
        {"values for some of the named sites": {"data": {"mu": 0.5}}},
        within=seeded,
    ),
    cases(
        "handlers.seed(handlers.reparam(model, config=config), key)()",
        {"handlers": handlers, "config": {"theta": fd.FlowReparam()}},
        {
            "a built-in distribution, under `FlowReparam`": {"model": normal_model},
            "an observed site, under `FlowReparam`": {
                "model": handlers.condition(model, {"theta": jnp.zeros(2)}),
            },
        },
    ),
    cases(
        "fd.flow_module(name, density)",
        IN_MODEL | {"density": PLAIN, "context": CONTEXT[0]},
        {"a model": {"density": PLAIN.model}, "a conditional density without its context": {"density": GIVEN_LATER}},
        within=seeded,
    ),
    cases(
        "fd.as_guide(density)",
        GOOD,
        {
            "an amortized density": {"density": AMORTIZED},
            "a conditional density without its context": {"density": GIVEN_LATER},
        },
    ),
    cases(
        "fd.AutoFlow(model)",
        {"model": normal_model},
        {
            "a density for `model`": {"model": PLAIN},
            "`init_scale=0`": {"init_scale": 0.0},
            "`solver=8`": {"solver": 8},
        },
    ),
    cases(
        "started(fd.AutoFlow(model, network=network))",
        {"model": normal_model, "started": started},
        {
            "`network` of another dimension": {"network": fd.networks.ResidualMLP(KEY, 3, width=8)},
            "a name for `network`": {"network": "mlp"},
        },
    ),
    cases("fd.PathGradientELBO()", {}, {"`num_particles=0`": {"num_particles": 0}}),
    cases(
        "fd.Rounded(base)",
        {"density": PLAIN, "base": dist.Normal(), "data": DATA},
        {
            "a number for the distribution": {"base": 3},
            "a discrete distribution": {"base": dist.Poisson(1.0)},
            "a density on a simplex": {"base": SIMPLEX},
            "too many coordinates": {"base": dist.Normal().expand([21202]).to_event(1)},
            "units of too many columns": {"unit": [1, 1]},
            "`unit=-1`": {"unit": -1},
            "`points=12`": {"points": 12},
        },
    ),
    cases(
        "distribution.log_prob(value)",
        {"distribution": fd.Rounded(dist.Normal(jnp.zeros(2)).to_event(1))},
        {"rounded events of another shape": {"value": jnp.zeros(3)}, "text": {"value": "a"}},
    ),
    cases(
        "jax.jit(lambda unit: fd.Rounded(base, unit).log_prob(1.0))(unit)",
        {"base": dist.Normal(), "unit": jnp.asarray(1.0), "jax": jax},
        {"a traced `unit`": {}},
    ),
]
