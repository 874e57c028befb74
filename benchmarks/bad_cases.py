"""Bad input of each kind that was tried, by the public function or class that it is handed to.

Nothing here is trained: the densities are those that a fit would start from.
"""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pandas as pd
import xarray as xr
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS, SVI

import flowdensity
from flowdensity import _container
from flowdensity.training.checkpoints import open_checkpoint
from flowdensity.training.prepare import prepare

fd: Any = flowdensity
"""What is handed over is of the wrong type on purpose."""
Cases: TypeAlias = Mapping[str, Callable[[], Any]]
"""What is done, by what was handed over."""

ALIKE = ("fit_flow", "fit_diffusion", "fit_likelihood")
"""What checks its input alike."""
KEY = jr.key(0)
ROWS = 60
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(ROWS, 2))
CONTEXT = RNG.normal(size=(ROWS, 3))
NAMED = {"mu": DATA[:, 0], "tau": np.exp(DATA[:, 1])}


def untrained(data: Any, context: Any = None, support: Any = None) -> Any:
    """A density that `fit_flow` would start from, of the shapes and names of some data."""
    parts, _ = prepare("fit_flow", KEY, data, context, support, None, None, None, None, None)
    return fd.FlowDensity(fd.Flow(path=fd.CondOT(), **parts.shared))


def with_entry(table: np.ndarray, value: float) -> np.ndarray:
    """The table with one entry replaced."""
    changed = table.copy()
    changed[5, 1] = value
    return changed


PLAIN = untrained(DATA)
GIVEN_LATER = untrained(DATA, CONTEXT)
CONTEXT_BY_NAME = untrained(DATA, {"a": CONTEXT[:, 0], "b": CONTEXT[:, 1]})
BY_NAME = untrained(NAMED, support={"tau": constraints.positive})
WITH_VECTOR = untrained({"v": CONTEXT, "w": DATA[:, 0]})
ENERGY = fd.EnergyNetwork(KEY, 2, reach=jnp.asarray(4.0), scale=jnp.asarray(1.0))
AMORTIZED = fd.AmortizedDensity(ENERGY, PLAIN)
FIELD = fd.VelocityField(lambda t, x, context: 0.5 * x, dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def draws(**variables: np.ndarray) -> xr.Dataset:
    """A posterior of two chains of 50 draws."""
    return xr.Dataset(
        {
            name: (("chain", "draw", *(f"{name}_{axis}" for axis in range(values.ndim - 2))), values)
            for name, values in variables.items()
        }
    )


POSTERIOR = draws(theta=RNG.normal(size=(2, 50, 2)))


def model(prior: Any = PLAIN) -> None:
    """The density as a prior."""
    theta = numpyro.sample("theta", prior)
    numpyro.deterministic("sum", jnp.sum(theta))
    numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=jnp.zeros(2))


def normal_model() -> None:
    """The same without a learned density."""
    model(dist.Normal(0.0, 1.0).expand([2]).to_event(1))


def subsampled() -> None:
    """A plate that draws its rows."""
    numpyro.sample("theta", PLAIN)
    with numpyro.plate("rows", 10, subsample_size=5):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def in_model(body: Callable[[], Any]) -> Any:
    """Run statements as a model."""
    return handlers.seed(body, KEY)()


def by_name() -> None:
    """The sites of a density of named values."""
    fd.sample_sites("joint", BY_NAME)


def taken() -> None:
    """A site of the name of one of the density's."""
    numpyro.sample("mu", dist.Normal(0.0, 1.0))
    by_name()


def reparametrised(body: Callable[[], Any]) -> Any:
    """Run a model with `FlowReparam` at the site theta."""
    return in_model(handlers.reparam(body, config={"theta": fd.FlowReparam()}))


def guided(guide: Any) -> Any:
    """Start variational inference with a guide."""
    return SVI(normal_model, guide, optax.adam(1e-3), fd.PathGradientELBO()).init(KEY)


def corrected(of: Callable[[], Any], **options: Any) -> Any:
    """Start NUTS with delayed acceptance."""
    kernel = fd.DelayedAcceptance(NUTS(of), **{"exact": {"theta": PLAIN}} | options)
    MCMC(kernel, num_warmup=1, num_samples=1, progress_bar=False).run(KEY)


def of_all_fits(name: str) -> Cases:
    """What all fits from data check alike."""
    fit = getattr(fd, name)

    def of(**options: Any) -> Callable[[], Any]:
        return lambda: fit(KEY, **{"data": DATA} | options, progress=False)

    return {
        "an integer for the key": lambda: fit(0, DATA, progress=False),
        "no key, data first": lambda: fit(DATA, None, progress=False),
        "one row": of(data=DATA[:1]),
        "a single number": of(data=3.0),
        "rows without columns": of(data=np.zeros((ROWS, 0))),
        "rows of several lengths": of(data=[[1.0, 2.0], [3.0]]),
        "text": of(data=[["a", "b"], ["c", "d"]]),
        "complex numbers": of(data=DATA + 1j),
        "a nan": of(data=with_entry(DATA, np.nan)),
        "an infinite value": of(data=with_entry(DATA, np.inf)),
        "a constant column": of(data=np.column_stack([DATA, np.full(ROWS, 7.0)])),
        "a column that float32 cannot tell from a constant": of(data=np.column_stack([DATA, 1e9 + DATA[:, 0]])),
        "a dict without arrays": of(data={}),
        "sites with different numbers of rows": of(data={"a": DATA[:, 0], "b": DATA[:-1, 1]}),
        "a DataFrame with a column of text": of(data=pd.DataFrame({"a": DATA[:, 0], "b": ["x"] * ROWS})),
        "a DataFrame with two columns of one name": of(data=pd.DataFrame(DATA, columns=["a", "a"])),
        "a posterior whose draws have no chains": of(data=xr.Dataset({"a": (("row",), DATA[:, 0])})),
        "`support` in words": of(support="positive"),
        "negative values on `constraints.positive`": of(support=constraints.positive),
        "angles on `constraints.circular`": of(support=constraints.circular),
        "`support` of whole numbers": of(support=constraints.nonnegative_integer),
        "`support` for which there is no bijection": of(support=constraints.sphere),
        "one constraint in a list, for two columns": of(support=[constraints.real]),
        "`support` by name for an array": of(support={"tau": constraints.positive}),
        "`support` of a name that `data` lacks": of(data=NAMED, support={"sigma": constraints.positive}),
        "numbers on a simplex": of(data=DATA[:, 0], support=constraints.simplex),
        "`context` with fewer rows": of(context=CONTEXT[:-1]),
        "`context` with a nan": of(context=with_entry(CONTEXT, np.nan)),
        "a constant column in `context`": of(context=np.ones((ROWS, 1))),
        "text for `context`": of(context=["a"] * ROWS),
        "`weights` of another number": of(weights=np.ones(ROWS - 1)),
        "a negative weight": of(weights=np.r_[-1.0, np.ones(ROWS - 1)]),
        "a nan among `weights`": of(weights=np.r_[np.nan, np.ones(ROWS - 1)]),
        "one weight that is not zero": of(weights=np.eye(ROWS)[0]),
        "a name for `network`": of(network="mlp"),
        "`network` of another dimension": of(network=fd.ResidualMLP(KEY, 3, width=8)),
        "`divergence` that is not there": of(divergence="hutchinson"),
        "`steps=0`": of(steps=0),
        "`steps=1e3`, a float": of(steps=1e3),
        "`batch_size=0`": of(batch_size=0),
        "`learning_rate=-1e-3`": of(learning_rate=-1e-3),
        "`validation=1`": of(validation=1),
        "`tolerance=0`": of(tolerance=0),
        "`checkpoint=True`": of(checkpoint=True),
        "`checkpoint` with a file in its place": of(checkpoint="notes.txt"),
        "`checkpoint` of another fit": of(checkpoint="other-fit"),
    }


def of_fits() -> dict[str, Cases]:
    """What one fit checks and others do not."""
    return {
        "fit_flow": {
            'path="condot"': lambda: fd.fit_flow(KEY, DATA, path="condot"),
            "path of a class, not of an object": lambda: fd.fit_flow(KEY, DATA, path=fd.CondOT),
        },
        "fit_diffusion": {
            'path="vp"': lambda: fd.fit_diffusion(KEY, DATA, path="vp"),
            'prediction="epsilon"': lambda: fd.fit_diffusion(KEY, DATA, prediction="epsilon"),
        },
        "fit_likelihood": {
            "a density for `model`": lambda: fd.fit_likelihood(KEY, DATA, model=PLAIN),
            "`model` and `network`": lambda: fd.fit_likelihood(
                KEY, DATA, model=PLAIN.model, network=fd.ResidualMLP(KEY, 2)
            ),
            "`model` and `support`": lambda: fd.fit_likelihood(
                KEY, DATA, model=PLAIN.model, support=constraints.positive
            ),
            "data of another shape than the model's": lambda: fd.fit_likelihood(KEY, DATA[:, :1], model=PLAIN.model),
        },
        "fit_divergence": {
            "an integer for the key": lambda: fd.fit_divergence(0, PLAIN.model, DATA),
            "a density for `model`": lambda: fd.fit_divergence(KEY, PLAIN, DATA),
            "data of another shape than the model's": lambda: fd.fit_divergence(KEY, PLAIN.model, CONTEXT),
            "data with a nan": lambda: fd.fit_divergence(KEY, PLAIN.model, with_entry(DATA, np.nan)),
            "names for a model without": lambda: fd.fit_divergence(KEY, PLAIN.model, NAMED),
            "other names than the model's": lambda: fd.fit_divergence(KEY, BY_NAME.model, {"mu": 0.0, "sigma": 1.0}),
            "a conditional model without `context`": lambda: fd.fit_divergence(KEY, GIVEN_LATER.model, DATA),
            "`context` for an unconditional model": lambda: fd.fit_divergence(KEY, PLAIN.model, DATA, CONTEXT),
            'objective="stein"': lambda: fd.fit_divergence(KEY, PLAIN.model, DATA, objective="stein"),
            "`ScoreStein` for a model without a score": lambda: fd.fit_divergence(
                KEY, FIELD, DATA, objective=fd.ScoreStein(), progress=False
            ),
            "`steps=0`": lambda: fd.fit_divergence(KEY, PLAIN.model, DATA, steps=0),
        },
        "distill": {
            "an integer for the key": lambda: fd.distill(0, PLAIN),
            "a model for `density`": lambda: fd.distill(KEY, PLAIN.model),
            "what is amortized already": lambda: fd.distill(KEY, AMORTIZED),
            "`labels=8`": lambda: fd.distill(KEY, PLAIN, labels=8),
            "`width=0`": lambda: fd.distill(KEY, PLAIN, width=0),
            "`learning_rate` of nan": lambda: fd.distill(KEY, PLAIN, learning_rate=np.nan),
        },
    }


def of_densities() -> dict[str, Cases]:
    """What the distributions check."""
    out_of_support = jnp.array([[0.0, 1.0, 2.0]])
    return {
        "FlowDensity": {
            "a network for `model`": lambda: fd.FlowDensity(fd.ResidualMLP(KEY, 2)),
            'divergence="exact"': lambda: fd.FlowDensity(PLAIN.model, divergence="exact"),
            "`solver=16`": lambda: fd.FlowDensity(PLAIN.model, solver=16),
            "`context` for an unconditional model": lambda: fd.FlowDensity(PLAIN.model, CONTEXT),
        },
        "FlowDensity.given": {
            "a context of another shape": lambda: GIVEN_LATER.given(CONTEXT[:, :2]),
            "a context, for an unconditional density": lambda: PLAIN.given(CONTEXT[0]),
            "text": lambda: GIVEN_LATER.given("control"),
            "names, for a density that knows none": lambda: GIVEN_LATER.given({"a": 0.0}),
            "a name missing": lambda: CONTEXT_BY_NAME.given({"a": 0.0}),
            "batch axes that do not broadcast": lambda: CONTEXT_BY_NAME.given({"a": np.zeros(2), "b": np.zeros(3)}),
        },
        "FlowDensity.with_divergence": {"a name": lambda: PLAIN.with_divergence("exact")},
        "FlowDensity.with_solver": {"a number of steps": lambda: PLAIN.with_solver(32)},
        "FlowDensity.sample": {
            "an integer for the key": lambda: PLAIN.sample(0),
            "a conditional density without its context": lambda: GIVEN_LATER.sample(KEY),
        },
        "FlowDensity.log_prob": {
            "events with a column too many": lambda: PLAIN.log_prob(out_of_support),
            "text": lambda: PLAIN.log_prob([["a", "b"]]),
            "a dict, in place of `density.pack` of it": lambda: BY_NAME.log_prob({"mu": 0.0, "tau": 1.0}),
            "a conditional density without its context": lambda: GIVEN_LATER.log_prob(DATA),
        },
        "FlowDensity.from_base": {
            "text": lambda: PLAIN.from_base("a"),
            "noise of another dimension": lambda: PLAIN.from_base(jnp.zeros(3)),
            "a conditional density without its context": lambda: GIVEN_LATER.from_base(jnp.zeros(2)),
        },
        "FlowDensity.to_base": {"events of another shape": lambda: PLAIN.to_base(jnp.zeros(3))},
        "FlowDensity.pack": {
            "a density without names": lambda: PLAIN.pack({"mu": 0.0}),
            "a name missing": lambda: BY_NAME.pack({"mu": 0.0}),
            "a name too many": lambda: BY_NAME.pack({"mu": 0.0, "tau": 1.0, "nu": 2.0}),
            "a number for a vector": lambda: WITH_VECTOR.pack({"v": 0.0, "w": 1.0}),
            "axes that do not broadcast": lambda: BY_NAME.pack({"mu": np.zeros(2), "tau": np.ones(3)}),
        },
        "FlowDensity.unpack": {
            "a density without names": lambda: PLAIN.unpack(jnp.zeros(2)),
            "an event of another shape": lambda: BY_NAME.unpack(jnp.zeros(3)),
        },
        "FlowDensity.sample_diffusion": {
            "a model without a score": lambda: fd.FlowDensity(FIELD).sample_diffusion(KEY),
            "an integer for the key": lambda: PLAIN.sample_diffusion(0),
            "`steps=0`": lambda: PLAIN.sample_diffusion(KEY, steps=0),
            "`steps=7.5`": lambda: PLAIN.sample_diffusion(KEY, steps=7.5),
            "`strength=-1`": lambda: PLAIN.sample_diffusion(KEY, strength=-1.0),
            "text for `strength`": lambda: PLAIN.sample_diffusion(KEY, strength="1"),
            "`strength` of nan": lambda: PLAIN.sample_diffusion(KEY, strength=np.nan),
            "a conditional density without its context": lambda: GIVEN_LATER.sample_diffusion(KEY),
        },
        "AmortizedDensity": {
            "a density for `energy`": lambda: fd.AmortizedDensity(PLAIN, PLAIN),
            "a model for `flow`": lambda: fd.AmortizedDensity(ENERGY, PLAIN.model),
        },
        "AmortizedDensity.log_prob": {"events with a column too many": lambda: AMORTIZED.log_prob(out_of_support)},
        "AmortizedDensity.given": {"a context, for an unconditional density": lambda: AMORTIZED.given(CONTEXT[0])},
        "sample_sites": {
            "a built-in distribution": lambda: in_model(lambda: fd.sample_sites("theta", dist.Normal(0.0, 1.0))),
            "a density without names": lambda: in_model(lambda: fd.sample_sites("theta", PLAIN)),
            "a name that another site has": lambda: in_model(handlers.trace(taken)),
            "values for the named sites alone": lambda: in_model(handlers.condition(by_name, {"mu": 0.5})),
        },
        "FlowReparam": {
            "a built-in distribution": lambda: reparametrised(normal_model),
            "an observed site": lambda: reparametrised(handlers.condition(model, {"theta": jnp.zeros(2)})),
        },
        "flow_module": {
            "a model": lambda: in_model(lambda: fd.flow_module("flow", PLAIN.model)),
            "a conditional density without its context": lambda: in_model(lambda: fd.flow_module("flow", GIVEN_LATER)),
        },
        "as_guide": {
            "an amortized density": lambda: fd.as_guide(AMORTIZED),
            "a conditional density without its context": lambda: fd.as_guide(GIVEN_LATER),
        },
        "AutoFlow": {
            "a density for `model`": lambda: fd.AutoFlow(PLAIN),
            "`init_scale=0`": lambda: fd.AutoFlow(model, init_scale=0.0),
            "`network` of another dimension": lambda: guided(
                fd.AutoFlow(normal_model, network=fd.ResidualMLP(KEY, 3, width=8))
            ),
            "a name for `network`": lambda: guided(fd.AutoFlow(normal_model, network="mlp")),
            "`solver=8`": lambda: fd.AutoFlow(normal_model, solver=8),
        },
        "PathGradientELBO": {"`num_particles=0`": lambda: fd.PathGradientELBO(num_particles=0)},
    }


def of_models() -> dict[str, Cases]:
    """What models, networks, paths, solvers, estimators and objectives check."""
    normal = dist.Normal(0.0, 1.0).expand([2]).to_event(1)
    betas = np.linspace(1e-4, 0.02, 10)

    def same(t: Any, x: Any, context: Any) -> Any:
        return x

    def tall(t: Any, x: Any, context: Any) -> Any:
        return jnp.concatenate([x, x])

    return {
        "VelocityField": {
            "what cannot be called": lambda: fd.VelocityField(3.0, normal),
            "a velocity of another shape": lambda: fd.VelocityField(tall, normal),
            "a velocity that takes no context": lambda: fd.VelocityField(lambda t, x: x, normal),
            "a base with batch axes": lambda: fd.VelocityField(same, dist.Normal(0.0, 1.0).expand([2])),
            "a base that is not normal": lambda: fd.VelocityField(same, dist.Uniform().expand([2]).to_event(1)),
            "`base=None`": lambda: fd.VelocityField(same, None),
            "`times=(1.0, 1.0)`": lambda: fd.VelocityField(same, normal, times=(1.0, 1.0)),
            "`times` with a list": lambda: fd.VelocityField(same, normal, times=(0.0, [1.0])),
            "`times=1.0`": lambda: fd.VelocityField(same, normal, times=1.0),
            "`context_shape=3`": lambda: fd.VelocityField(same, normal, context_shape=3),
        },
        "from_ddpm": {
            "what cannot be called": lambda: fd.from_ddpm(3.0, (2,), betas=betas),
            "an output of another shape": lambda: fd.from_ddpm(tall, (2,), betas=betas),
            "a schedule with a rate of 2": lambda: fd.from_ddpm(same, (2,), betas=[0.1, 2.0]),
            "a schedule of one step": lambda: fd.from_ddpm(same, (2,), betas=[0.1]),
            'betas="linear"': lambda: fd.from_ddpm(same, (2,), betas="linear"),
            'predicts="epsilon"': lambda: fd.from_ddpm(same, (2,), betas=betas, predicts="epsilon"),
            "`event_shape=2`": lambda: fd.from_ddpm(same, 2, betas=betas),
        },
        "from_edm": {
            "what cannot be called": lambda: fd.from_edm(3.0, (2,)),
            "an output of another shape": lambda: fd.from_edm(tall, (2,)),
            "`sigma_min` above `sigma_max`": lambda: fd.from_edm(same, (2,), sigma_min=90.0),
            "`sigma_min=None`": lambda: fd.from_edm(same, (2,), sigma_min=None),
            "`sigma_data=0`": lambda: fd.from_edm(same, (2,), sigma_data=0.0),
            "`sigma_max` of infinity": lambda: fd.from_edm(same, (2,), sigma_max=np.inf),
        },
        "Flow": {"a callable for `network`": lambda: fd.Flow(same, fd.CondOT(), *scalings())},
        "Diffusion": {
            'prediction="epsilon"': lambda: fd.Diffusion(
                fd.ResidualMLP(KEY, 2, width=8), fd.VariancePreserving(), "epsilon", *scalings()
            ),
        },
        "ContinuousFlow": {"a model that is not on the circle": lambda: fd.ContinuousFlow(FIELD)},
        "GaussianMixture": {
            "text": lambda: fd.GaussianMixture("a", np.zeros((1, 2)), np.eye(2)[None]),
            "`means` of other components": lambda: fd.GaussianMixture(
                np.ones(2), np.zeros((3, 2)), np.tile(np.eye(2), (3, 1, 1))
            ),
            "a covariance with negative variances": lambda: fd.GaussianMixture(
                np.ones(1), np.zeros((1, 2)), -np.eye(2)[None]
            ),
            "a weight of 0": lambda: fd.GaussianMixture(np.arange(2), np.zeros((2, 1)), np.ones((2, 1, 1))),
        },
        "ResidualMLP": {
            'activation="relu"': lambda: fd.ResidualMLP(KEY, 2, activation="relu"),
            "`dim=0`": lambda: fd.ResidualMLP(KEY, 0),
            "`width=0`": lambda: fd.ResidualMLP(KEY, 2, width=0),
            "`depth=-1`": lambda: fd.ResidualMLP(KEY, 2, depth=-1),
            "an integer for the key": lambda: fd.ResidualMLP(0, 2),
        },
        "UNet": {
            "an event without channels": lambda: fd.UNet(KEY, (8, 8)),
            "rows that cannot be halved twice": lambda: fd.UNet(KEY, (10, 8, 1)),
            "`scales=0`": lambda: fd.UNet(KEY, (8, 8, 1), scales=0),
            "`width=0`": lambda: fd.UNet(KEY, (8, 8, 1), width=0),
            'activation="relu"': lambda: fd.UNet(KEY, (8, 8, 1), activation="relu"),
        },
        "VariancePreserving": {
            "`beta_min` above `beta_max`": lambda: fd.VariancePreserving(beta_min=30.0),
            "text for `beta_min`": lambda: fd.VariancePreserving(beta_min="a"),
            "`beta_max` of infinity": lambda: fd.VariancePreserving(beta_max=np.inf),
        },
        "VarianceExploding": {
            "`sigma_min=0`": lambda: fd.VarianceExploding(sigma_min=0.0),
            "`sigma_max` of infinity": lambda: fd.VarianceExploding(sigma_max=np.inf),
        },
        "FixedStep": {
            "`steps=0`": lambda: fd.FixedStep(steps=0),
            "`steps=7.5`": lambda: fd.FixedStep(steps=7.5),
            'method="rk4"': lambda: fd.FixedStep(method="rk4"),
        },
        "Adaptive": {
            "`rtol=-1`": lambda: fd.Adaptive(rtol=-1.0),
            "`rtol=0` and `atol=0`": lambda: fd.Adaptive(rtol=0.0, atol=0.0),
            "`atol` of nan": lambda: fd.Adaptive(atol=np.nan),
            "`max_steps=0`": lambda: fd.Adaptive(max_steps=0),
            'method="rk4"': lambda: fd.Adaptive(method="rk4"),
        },
        "HutchinsonDivergence": {
            "`probes=0`": lambda: fd.HutchinsonDivergence(KEY, probes=0),
            "`probes=1.5`": lambda: fd.HutchinsonDivergence(KEY, probes=1.5),
            'distribution="uniform"': lambda: fd.HutchinsonDivergence(KEY, distribution="uniform"),
            "an integer for the key": lambda: fd.HutchinsonDivergence(0),
        },
        "HutchPlusPlusDivergence": {
            "`probes=4`": lambda: fd.HutchPlusPlusDivergence(KEY, probes=4),
            'distribution="uniform"': lambda: fd.HutchPlusPlusDivergence(KEY, distribution="uniform"),
            "an integer for the key": lambda: fd.HutchPlusPlusDivergence(0),
        },
        "EnergyNetwork": {
            "an integer for the key": lambda: fd.EnergyNetwork(0, 2, reach=1.0, scale=1.0),
            "`depth=-1`": lambda: fd.EnergyNetwork(KEY, 2, reach=1.0, scale=1.0, depth=-1),
        },
        "SteinDivergence": {"a network for `head`": lambda: fd.SteinDivergence(fd.ResidualMLP(KEY, 2))},
        "LangevinStein": {
            "`rho=0`": lambda: fd.LangevinStein(rho=0.0),
            "`rho=None`": lambda: fd.LangevinStein(rho=None),
            "`tails=1.5`": lambda: fd.LangevinStein(tails=1.5),
            'source="rows"': lambda: fd.LangevinStein(source="rows"),
        },
        "ScoreStein": {'source="rows"': lambda: fd.ScoreStein(source="rows")},
        "HutchinsonRegression": {
            "`tails=-0.1`": lambda: fd.HutchinsonRegression(tails=-0.1),
            'source="rows"': lambda: fd.HutchinsonRegression(source="rows"),
        },
        "dequantise": {
            "an integer for the key": lambda: fd.dequantise(0, [1, 2]),
            "numbers that are not rounded": lambda: fd.dequantise(KEY, DATA),
            "a wrong unit": lambda: fd.dequantise(KEY, [[0.1], [0.2], [0.3]], unit=0.25),
            "values that are not finite": lambda: fd.dequantise(KEY, [1, np.nan]),
            "text": lambda: fd.dequantise(KEY, ["a"]),
            "`unit=-1`": lambda: fd.dequantise(KEY, [0], unit=-1),
            "units of too many columns": lambda: fd.dequantise(KEY, [[0, 1]], unit=[1, 1, 1]),
        },
        "bits_per_dimension": {
            "`unit=0`": lambda: fd.bits_per_dimension(DATA, 2, unit=0),
            "text": lambda: fd.bits_per_dimension(["a"], 2),
            "`dim=0`": lambda: fd.bits_per_dimension(DATA, 0),
        },
        "Rounded": {
            "a number for the distribution": lambda: fd.Rounded(3),
            "a discrete distribution": lambda: fd.Rounded(dist.Poisson(1.0)),
            "units of too many columns": lambda: fd.Rounded(dist.Normal(), unit=[1, 1]),
            "`unit=-1`": lambda: fd.Rounded(dist.Normal(), unit=-1),
            "`points=12`": lambda: fd.Rounded(dist.Normal(), points=12),
        },
    }


def of_plots() -> dict[str, Cases]:
    """What pictures check."""
    report = flowdensity.FitReport({}, {})
    return {
        "plot_density": {
            "a built-in distribution": lambda: fd.plot_density(KEY, dist.Normal(0.0, 1.0), DATA),
            "a conditional density without its context": lambda: fd.plot_density(KEY, GIVEN_LATER, DATA),
            "data of another shape": lambda: fd.plot_density(KEY, PLAIN, CONTEXT),
            "one name for two coordinates": lambda: fd.plot_density(KEY, PLAIN, DATA, names=["x"]),
            "an integer for the key": lambda: fd.plot_density(0, PLAIN, DATA),
            "a coordinate that is not there": lambda: fd.plot_density(KEY, PLAIN, DATA, coordinates="z"),
            "no coordinates": lambda: fd.plot_density(KEY, PLAIN, DATA, coordinates=[]),
            "one pair of axes for four panels": lambda: fd.plot_density(KEY, PLAIN, DATA, axes=[None]),
        },
        "plot_errors": {"a report of a fit": lambda: fd.plot_errors(report)},
        "plot_residuals": {
            "a report without residuals": lambda: fd.plot_residuals(report),
            "a density": lambda: fd.plot_residuals(PLAIN),
        },
        "plot_training": {"a density": lambda: fd.plot_training(PLAIN)},
        "plot_prior_posterior": {
            "an array of draws": lambda: fd.plot_prior_posterior(KEY, PLAIN, DATA),
            "draws with a nan": lambda: fd.plot_prior_posterior(KEY, PLAIN, draws(theta=np.full((2, 50, 2), np.nan))),
            "a site that is not there": lambda: fd.plot_prior_posterior(KEY, PLAIN, POSTERIOR, site="mu"),
        },
    }


def scalings() -> tuple[Any, Any, Any]:
    """Of states, of contexts, and the reach of an untrained density."""
    flow = PLAIN.model
    return flow.scaling, flow.context_scaling, flow.reach


def of_trust() -> dict[str, Cases]:
    """What diagnostics and files check."""

    def reweight(posterior: Any = POSTERIOR, of: Any = model, exact: Any = None) -> Any:
        return fd.reweight(KEY, posterior, of, {"theta": PLAIN} if exact is None else exact, progress=False)

    def calibrate(key: Any = KEY, of: Any = model, **options: Any) -> Any:
        return fd.simulation_based_calibration(key, of, progress=False, **options)

    reweighted = functools.cache(reweight)

    return {
        "diagnose": {
            "a built-in distribution": lambda: fd.diagnose(KEY, dist.Normal(0.0, 1.0)),
            "an integer for the key": lambda: fd.diagnose(0, PLAIN, progress=False),
            "samples of another shape": lambda: fd.diagnose(KEY, PLAIN, CONTEXT),
            "samples with a nan": lambda: fd.diagnose(KEY, PLAIN, with_entry(DATA, np.nan)),
            "samples off the support": lambda: fd.diagnose(KEY, BY_NAME, DATA),
            "a conditional density and no `context`": lambda: fd.diagnose(KEY, GIVEN_LATER, DATA),
            "a number for `context`": lambda: fd.diagnose(KEY, GIVEN_LATER, context=3.0),
            "`context` with fewer rows": lambda: fd.diagnose(KEY, GIVEN_LATER, DATA, context=CONTEXT[:-1]),
            "a density with its context, and `context`": lambda: fd.diagnose(
                KEY, GIVEN_LATER.given(CONTEXT), DATA, context=CONTEXT
            ),
        },
        "reweight": {
            "an integer for the key": lambda: fd.reweight(0, POSTERIOR, model, {"theta": PLAIN}, progress=False),
            "an array of draws": lambda: reweight(DATA),
            "`exact` that is a density": lambda: reweight(exact=PLAIN),
            "`exact` that is empty": lambda: reweight(exact={}),
            "`exact` with a built-in distribution": lambda: reweight(exact={"theta": dist.Normal(0.0, 1.0)}),
            "a site that the model lacks": lambda: reweight(exact={"tau": PLAIN}),
            "a deterministic site": lambda: reweight(exact={"sum": PLAIN}),
            "a site without a learned density": lambda: reweight(of=normal_model),
            "a density of other events": lambda: reweight(exact={"theta": untrained(CONTEXT)}),
            "a plate that draws its rows": lambda: reweight(of=subsampled),
            "a posterior without the site": lambda: reweight(draws(mu=np.zeros((2, 50)))),
            "draws of another shape": lambda: reweight(draws(theta=np.zeros((2, 50, 3)))),
            "ten draws": lambda: reweight(draws(theta=np.zeros((2, 5, 2)))),
            "draws with a nan": lambda: reweight(draws(theta=np.full((2, 50, 2), np.nan))),
            "variables without chains": lambda: reweight(xr.Dataset({"theta": (("row", "x"), DATA)})),
        },
        "Reweighted.resample": {"`draws=0`": lambda: reweighted().resample(draws=0)},
        "Reweighted.expectation": {"values of too few draws": lambda: reweighted().expectation(np.zeros(10))},
        "DelayedAcceptance": {
            "a model for `kernel`": lambda: fd.DelayedAcceptance(model, {"theta": PLAIN}),
            "`steps=0`": lambda: corrected(model, steps=0),
            "`steps=1.5`": lambda: corrected(model, steps=1.5),
            "`exact` that is a density": lambda: corrected(model, exact=PLAIN),
            "a site that the model lacks": lambda: corrected(model, exact={"tau": PLAIN}),
            "a site without a learned density": lambda: corrected(normal_model),
        },
        "simulation_based_calibration": {
            "an integer for the key": lambda: calibrate(key=0),
            "a number for `model`": lambda: calibrate(of=3),
            "a model that observes nothing": lambda: calibrate(of=lambda: numpyro.sample("theta", PLAIN)),
            "a simulator without one of the sites": lambda: calibrate(simulator=lambda: numpyro.sample("theta", PLAIN)),
            "`simulations=5`": lambda: calibrate(simulations=5),
            "`draws=2`": lambda: calibrate(draws=2),
            "`warmup=0.5`": lambda: calibrate(warmup=0.5),
        },
        "check_support": {
            "a built-in distribution": lambda: fd.check_support(POSTERIOR, dist.Normal(0.0, 1.0)),
            "an array of draws": lambda: fd.check_support(DATA, PLAIN),
            "a density of many contexts": lambda: fd.check_support(POSTERIOR, GIVEN_LATER.given(CONTEXT)),
            "a conditional density without its context": lambda: fd.check_support(POSTERIOR, GIVEN_LATER),
            "draws with a nan": lambda: fd.check_support(draws(theta=np.full((2, 50, 2), np.nan)), PLAIN),
            "a site that is not there": lambda: fd.check_support(POSTERIOR, PLAIN, site="mu"),
            "data of another shape": lambda: fd.check_support(POSTERIOR, PLAIN, data=CONTEXT),
        },
        "save": {
            "a model": lambda: fd.save("density.flow", PLAIN.model),
            "an expanded density": lambda: fd.save("density.flow", PLAIN.expand([3])),
            "a string for `report`": lambda: fd.save("density.flow", PLAIN, "report"),
            "a number for `file`": lambda: fd.save(3.5, PLAIN),
        },
        "load": {
            "a text file": lambda: fd.load("notes.txt"),
            "a number for `file`": lambda: fd.load(3.5),
            "a file cut short": lambda: fd.load("half.flow"),
            "a file with one byte changed": lambda: fd.load("flipped.flow"),
            "no network, for a density with one of the user's own": lambda: fd.load("own.flow"),
            "a network of another shape": lambda: fd.load("own.flow", network=fd.ResidualMLP(KEY, 2, width=8)),
            "a file of a newer version": lambda: fd.load("newer.flow"),
            "a file that says something else": lambda: fd.load("forged.flow"),
            "a file whose solver has a billion steps": lambda: fd.load("endless.flow"),
            "a network that the file does not need": lambda: fd.load("density.flow", network=lambda t, x, c: x),
        },
        "load_report": {
            "a text file": lambda: fd.load_report("notes.txt"),
            "a file of a newer version": lambda: fd.load_report("newer.flow"),
        },
    }


def write_files() -> None:
    """What the cases of files read, in the current folder."""
    Path("notes.txt").write_text("no density\n")
    fd.save("density.flow", PLAIN)
    content = Path("density.flow").read_bytes()
    Path("half.flow").write_bytes(content[: len(content) // 2])
    Path("flipped.flow").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    header, tensors = _container.read("load", "density.flow")
    _container.write("newer.flow", header | {"format": header["format"] + 1}, tensors)
    solver = fd.FixedStep(steps=123_456)
    fd.save("endless.flow", PLAIN.with_solver(solver))
    endless, weights = _container.read("load", "endless.flow")
    endless = json.loads(json.dumps(endless).replace("123456", "1000000000"))
    _container.write("endless.flow", endless, weights)
    _container.write("forged.flow", header | {"density": {"type": "Popen", "fields": {}}}, tensors)
    fd.save("own.flow", fd.FlowDensity(FIELD))
    open_checkpoint("fit_flow", "other-fit", KEY)
