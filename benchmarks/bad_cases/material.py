"""Data, densities and models that the cases are made of."""

from typing import Any

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from numpyro.distributions import constraints

import flowdensity
from flowdensity.training.prepare import prepare

fd: Any = flowdensity
KEY = jr.key(0)
ROWS = 60
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(ROWS, 2))
CONTEXT = RNG.normal(size=(ROWS, 3))
NAMED = {"mu": DATA[:, 0], "tau": np.exp(DATA[:, 1])}
NORMAL = dist.Normal(0.0, 1.0).expand([2]).to_event(1)


def untrained(data: Any, context: Any = None, support: Any = None) -> Any:
    """A density that `fit_flow` would start from, of the shapes and names of some data."""
    parts, _ = prepare("fit_flow", KEY, data, context, support, None, None, None, None, None)
    small = fd.ResidualMLP(
        KEY, parts.network.dim, parts.network.context_dim, width=4, depth=0, experts=0, frequencies=1
    )
    return fd.FlowDensity(fd.Flow(path=fd.CondOT(), **parts.shared | {"network": small}), solver=fd.FixedStep(2))


def with_entry(table: np.ndarray, value: float) -> np.ndarray:
    """The table with one entry replaced."""
    changed = table.copy()
    changed[5, 1] = value
    return changed


def draws(**variables: np.ndarray) -> xr.Dataset:
    """A posterior with the axes (chain, draw) in front of each variable's own."""
    return xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_{axis}" for axis in range(values.ndim - 2))), values)
            for name, values in variables.items()
        }
    )


PLAIN = untrained(DATA)
GIVEN_LATER = untrained(DATA, CONTEXT)
CONTEXT_BY_NAME = untrained(DATA, {"a": CONTEXT[:, 0], "b": CONTEXT[:, 1]})
BY_NAME = untrained(NAMED, support={"tau": constraints.positive})
WITH_VECTOR = untrained({"v": CONTEXT, "w": DATA[:, 0]})
OTHER = untrained(CONTEXT)
ENERGY = fd.EnergyNetwork(KEY, 2, reach=jnp.asarray(4.0), scale=jnp.asarray(1.0))
AMORTIZED = fd.AmortizedDensity(ENERGY, PLAIN)
FIELD = fd.VelocityField(lambda t, x, context: 0.5 * x, NORMAL)
POSTERIOR = draws(theta=RNG.normal(size=(2, 50, 2)))
RESIDUALS = fd.Residuals(np.linspace(0.0, 1.0, 3), ("1", "g"), np.ones((2, 2)), np.ones((2, 2)))


def model(prior: Any = PLAIN) -> None:
    """The density as a prior."""
    theta = numpyro.sample("theta", prior)
    numpyro.deterministic("sum", jnp.sum(theta))
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=jnp.zeros(2))


def normal_model() -> None:
    """The same without a learned density."""
    model(NORMAL)
