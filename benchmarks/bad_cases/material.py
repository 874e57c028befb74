"""Data, densities and models that the cases are made of."""

import functools
from collections.abc import Callable
from typing import Any

import equinox
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import xarray as xr
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS

import flowdensity
from flowdensity.data.scaling import Scaling
from flowdensity.data.sites import Sites
from flowdensity.data.supports import free_size, joint
from flowdensity.models.fields import identity_scaling

fd: Any = flowdensity
KEY = jr.key(0)
ROWS = 60
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(ROWS, 2))
CONTEXT = RNG.normal(size=(ROWS, 3))
NAMED = {"mu": DATA[:, 0], "tau": np.exp(DATA[:, 1])}
NORMAL = dist.Normal(0.0, 1.0).expand([2]).to_event(1)


def untrained(
    events: tuple[int, ...] | dict[str, constraints.Constraint],
    contexts: tuple[int, ...] | list[str] = (0,),
    support: constraints.Constraint = constraints.real,
) -> Any:
    """A density whose network adds no velocity.

    Args:
        events: shape of an event, or supports of the numbers that one is made of, by name.
        contexts: shape of a context, or names of the numbers that one is made of.
        support: of an event without names.
    """
    scaling = named(events) if isinstance(events, dict) else Scaling(*ends(events, support), support, events)
    context_scaling = (
        named(dict.fromkeys(contexts, constraints.real)) if isinstance(contexts, list) else identity_scaling(contexts)
    )
    network = still(lambda: fd.networks.ResidualMLP(KEY, scaling.dim, context_scaling.dim, width=4, depth=0, experts=0))
    context_reach = jnp.asarray(5.0) if context_scaling.dim else None
    flow = fd.models.GaussianFlow(
        network, fd.paths.CondOT(), scaling, context_scaling, jnp.asarray(5.0), context_reach=context_reach
    )
    return fd.FlowDensity(flow, solver=fd.FixedStep(2))


def named(supports: dict[str, constraints.Constraint]) -> Scaling:
    """The map between named values and the real line, which leaves real ones as they are; "v" is a vector of three."""
    shapes = tuple((3,) if name == "v" else () for name in supports)
    size = sum(3 if name == "v" else 1 for name in supports)
    whole = joint(list(supports.values()), shapes)
    return Scaling(np.zeros(size), np.ones(size), whole, (size,), Sites(tuple(supports), shapes))


def ends(shape: tuple[int, ...], support: constraints.Constraint) -> tuple[np.ndarray, np.ndarray]:
    """Location and scale of a map that only unconstrains."""
    size = free_size(support, shape)
    return np.zeros(size), np.ones(size)


def still(make: Callable[[], Any]) -> Any:
    """A network of zeros, which takes no time to make."""
    abstract = equinox.filter_eval_shape(make)
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf, abstract
    )


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


PLAIN = untrained((2,))
GIVEN_LATER = untrained((2,), (3,))
CONTEXT_BY_NAME = untrained((2,), ["a", "b"])
BY_NAME = untrained({"mu": constraints.real, "tau": constraints.positive})
OTHER = untrained((3,))
SIMPLEX = untrained((3,), support=constraints.simplex)
WITH_VECTOR = untrained({"v": constraints.real, "w": constraints.real})
NETWORK = still(
    lambda: fd.networks.LogDensityNetwork(KEY, 2, reach=jnp.asarray(4.0), scale=jnp.asarray(1.0), width=4, depth=1)
)
AMORTIZED = fd.AmortizedDensity(NETWORK, PLAIN)
FIELD = fd.VelocityField(lambda t, x, context: 0.5 * x, NORMAL)
POSTERIOR = draws(theta=RNG.normal(size=(2, 50, 2)))
RESIDUALS = fd.results.Residuals(np.linspace(0.0, 1.0, 3), ("1", "g"), np.ones((2, 2)), np.ones((2, 2)))


def model(prior: Any = PLAIN) -> None:
    """The density as a prior."""
    theta = numpyro.sample("theta", prior)
    numpyro.deterministic("sum", jnp.sum(theta))
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=jnp.zeros(2))


def normal_model() -> None:
    """The same without a learned density."""
    model(NORMAL)


@functools.cache
def sampler() -> MCMC:
    """A run of NUTS."""
    mcmc = MCMC(NUTS(model, max_tree_depth=2), num_warmup=10, num_samples=50, progress_bar=False)
    mcmc.run(KEY)
    return mcmc
