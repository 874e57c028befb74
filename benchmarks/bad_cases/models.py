"""Models, networks, paths, solvers, estimators, objectives and rounded numbers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from .case import Groups, cases
from .material import DATA, KEY, NORMAL, PLAIN, fd

FLOW = PLAIN.model
PARTS = {
    "scaling": FLOW.scaling,
    "context_scaling": FLOW.context_scaling,
    "reach": FLOW.reach,
    "path": fd.paths.VariancePreserving(),
    "network": fd.networks.ResidualMLP(KEY, 2, width=8),
    "dim": 2,
}


def same(t: Any, x: Any, context: Any) -> Any:
    """A velocity of one event."""
    return x


def tall(t: Any, x: Any, context: Any) -> Any:
    """One whose output is too long."""
    return jnp.concatenate([x, x])


def batched(t: Any, x: Any, context: Any) -> Any:
    """One that takes a batch of events."""
    return x @ jnp.ones((2, 2)) if x.ndim == 2 else jnp.zeros((len(x), 2))


def short(t: Any, x: Any) -> Any:
    """One that takes no context."""
    return x


WRAPPED: dict[str, dict[str, Any]] = {
    "a velocity that cannot be called": {"network": 3.0},
    "a velocity for a batch of events": {"network": batched},
    "a velocity that takes no context": {"network": short},
}

MODELS: Groups = [
    cases(
        "fd.VelocityField(network, base)",
        {"network": same, "base": NORMAL, "dim": 2, "density": PLAIN},
        {
            **WRAPPED,
            "a base with batch axes": {"base": dist.Normal(0.0, 1.0).expand([2])},
            "a base that is not normal": {"base": dist.Uniform().expand([2]).to_event(1)},
            "a multivariate normal base with batch axes": {
                "base": dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)).expand([3]).to_event(1)
            },
            "`base=None`": {"base": None},
            "`times=(1.0, 1.0)`": {"times": (1.0, 1.0)},
            "`times` with a list": {"times": (0.0, [1.0])},
            "`times=1.0`": {"times": 1.0},
            "`context_shape=3`": {"context_shape": 3},
        },
    ),
    cases(
        "fd.from_ddpm(network, event_shape, betas=betas)",
        {"network": same, "event_shape": (2,), "betas": np.linspace(1e-4, 0.02, 10), "density": PLAIN},
        {
            **WRAPPED,
            "a schedule with a rate of 2": {"betas": [0.1, 2.0]},
            "a schedule of one step": {"betas": [0.1]},
            'betas="linear"': {"betas": "linear"},
            'predicts="epsilon"': {"predicts": "epsilon"},
            "`event_shape=2`": {"event_shape": 2},
        },
    ),
    cases(
        "fd.from_edm(network, event_shape, sigma_min=sigma_min, sigma_max=sigma_max)",
        {"network": same, "event_shape": (2,), "sigma_min": 0.002, "sigma_max": 80.0, "density": PLAIN},
        {
            **WRAPPED,
            "`sigma_min` above `sigma_max`": {"sigma_min": 90.0},
            "`sigma_min=None`": {"sigma_min": None},
            "`sigma_data=0`": {"sigma_data": 0.0},
            "`sigma_max` of infinity": {"sigma_max": np.inf},
            "`event_shape=2`": {"event_shape": 2},
        },
    ),
    cases(
        "fd.models.GaussianFlow(network, path, scaling, context_scaling, reach)",
        PARTS,
        {"a callable for `network`": {"network": same}, "a name for `path`": {"path": "condot"}},
    ),
    cases(
        "fd.models.GaussianFlow(network, path, scaling, context_scaling, reach, prediction)",
        PARTS,
        {'prediction="epsilon"': {"prediction": "epsilon"}},
    ),
    cases(
        "fd.models.GaussianMixture(weights, means, covariances)",
        {"weights": np.ones(1), "means": np.zeros((1, 2)), "covariances": np.eye(2)[None]},
        {
            "text": {"weights": ["a"]},
            "numbers as text": {"weights": ["1"]},
            "`weights` of other components": {
                "weights": np.ones(2),
                "means": np.zeros((3, 2)),
                "covariances": np.tile(np.eye(2), (3, 1, 1)),
            },
            "one component without its axis": {"weights": 1.0, "means": np.zeros(2), "covariances": np.eye(2)},
            "a covariance with negative variances": {"covariances": -np.eye(2)[None]},
            "a covariance that is singular": {"covariances": np.ones((1, 2, 2))},
            "a weight of 0": {
                "weights": np.arange(2),
                "means": np.zeros((2, 1)),
                "covariances": np.ones((2, 1, 1)),
            },
        },
    ),
    cases(
        "fd.networks.ResidualMLP(key, dim)",
        {"dim": 2},
        {
            'activation="relu"': {"activation": "relu"},
            "`dim=0`": {"dim": 0},
            "`width=0`": {"width": 0},
            "`depth=-1`": {"depth": -1},
            "an integer for the key": {"key": 0},
        },
    ),
    cases(
        "fd.networks.UNet(key, event_shape, scales=scales, width=width)",
        {"event_shape": (4, 4, 1), "scales": 2, "width": 2},
        {
            "an event without channels": {"event_shape": (4, 4)},
            "rows that cannot be halved": {"event_shape": (5, 4, 1)},
            "one number for `event_shape`": {"event_shape": 64},
            "`scales=0`": {"scales": 0},
            "`width=0`": {"width": 0},
            'activation="relu"': {"activation": "relu"},
        },
    ),
    cases(
        "fd.networks.LogDensityNetwork(key, dim, reach=1.0, scale=1.0)",
        {"dim": 2},
        {"an integer for the key": {"key": 0}, "`depth=-1`": {"depth": -1}},
    ),
    cases(
        "fd.paths.VariancePreserving(beta_min=beta_min, beta_max=beta_max)",
        {"beta_min": 0.1, "beta_max": 20.0},
        {
            "`beta_min` above `beta_max`": {"beta_min": 30.0},
            "text for `beta_min`": {"beta_min": "a"},
            "`beta_max` of infinity": {"beta_max": np.inf},
        },
    ),
    cases(
        "fd.paths.VarianceExploding(sigma_min=sigma_min, sigma_max=sigma_max)",
        {"sigma_min": 0.01, "sigma_max": 100.0},
        {
            "`sigma_min` above `sigma_max`": {"sigma_min": 300.0},
            "`sigma_min=0`": {"sigma_min": 0.0},
            "`sigma_max` of infinity": {"sigma_max": np.inf},
        },
    ),
]

PROBES: dict[str, dict[str, Any]] = {
    "`probes=1.5`": {"probes": 1.5},
    'distribution="uniform"': {"distribution": "uniform"},
    "an integer for the key": {"key": 0},
}
SOURCE: dict[str, dict[str, Any]] = {'source="rows"': {"source": "rows"}}

ESTIMATORS: Groups = [
    cases(
        "fd.FixedStep()",
        {},
        {
            "`steps=0`": {"steps": 0},
            "`steps=7.5`": {"steps": 7.5},
            "a billion steps": {"steps": 10**9},
            'method="rk4"': {"method": "rk4"},
        },
    ),
    cases(
        "fd.solvers.Adaptive()",
        {},
        {
            "`rtol=-1`": {"rtol": -1.0},
            "`rtol=0` and `atol=0`": {"rtol": 0.0, "atol": 0.0},
            "`atol` of nan": {"atol": np.nan},
            "`max_steps=0`": {"max_steps": 0},
            'method="rk4"': {"method": "rk4"},
        },
    ),
    cases("fd.HutchinsonDivergence(key)", {}, {"`probes=0`": {"probes": 0}, **PROBES}),
    cases("fd.HutchPlusPlusDivergence(key)", {}, {"`probes=4`": {"probes": 4}, **PROBES}),
    cases(
        "fd.SteinDivergence(head)",
        {"density": PLAIN, "model": FLOW, "data": DATA},
        {"a network for `head`": {"head": fd.networks.ResidualMLP(KEY, 2)}},
    ),
    cases(
        "fd.objectives.LangevinStein()",
        {},
        {
            "`rho=0`": {"rho": 0.0},
            "`rho=None`": {"rho": None},
            "`tails=1.5`": {"tails": 1.5},
            **SOURCE,
        },
    ),
    cases("fd.objectives.ScoreStein()", {}, SOURCE),
    cases("fd.objectives.HutchinsonRegression()", {}, {"`tails=-0.1`": {"tails": -0.1}, **SOURCE}),
    cases(
        "fd.dequantize(key, data, unit=unit)",
        {"data": [1, 2], "unit": 1.0},
        {
            "an integer for the key": {"key": 0},
            "numbers that are not rounded": {"data": DATA},
            "one column that is not rounded": {"data": np.column_stack([np.arange(60), DATA[:, 0]])},
            "a wrong unit": {"data": [[0.1], [0.2], [0.3]], "unit": 0.25},
            "values that are not finite": {"data": [1, np.nan]},
            "text": {"data": ["a"]},
            "`unit=-1`": {"data": [0], "unit": -1},
            "a negative unit of one column": {"data": [[0, 0.5]], "unit": [1, -0.5]},
            "units of too many columns": {"data": [[0, 1]], "unit": [1, 1, 1]},
            "units by name of an array": {"unit": {"a": 1.0}},
            "a unit of an unknown column": {"data": {"a": [1, 2]}, "unit": {"a": 1.0, "b": 0.1}},
            "a named column that is not rounded": {"data": {"a": [1, 2, 3], "b": DATA[:3, 0]}},
            "columns of different lengths": {"data": {"a": [1, 2], "b": [1, 2, 3]}},
        },
    ),
    cases(
        "fd.bits_per_dimension(log_prob, dim)",
        {"log_prob": DATA[:, 0], "dim": 2},
        {"`unit=0`": {"unit": 0}, "text": {"log_prob": ["a"]}, "`dim=0`": {"dim": 0}},
    ),
]
