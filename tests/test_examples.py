"""Every public function and class has an example in its docstring, and the examples run."""

import contextlib
import doctest
import functools
import inspect
import io
import re
import warnings

import arviz as az
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints
from numpyro.handlers import reparam
from references import amortized, random_flow
from shortened import ShallowNUTS, ShortMCMC, ShortSVI

import flowdensity as fd
from flowdensity.training.training import Training

SLOW = re.compile(r"\bfd\.(fit_\w+|distill|diagnose|simulation_based_calibration)\(|\.run\(")
"""Calls that train or sample; what calls them takes more than a few seconds."""
SOLVER = fd.FixedStep(4)


def public_objects():
    """Public functions and concrete classes by name. A name of several modules is listed once."""
    found = {}
    modules = {f"fd.{name}": getattr(fd, name) for name in fd.__all__ if inspect.ismodule(getattr(fd, name))}
    for prefix, module in ({"fd": fd} | modules).items():
        for name in getattr(module, "__all__", vars(module)):
            value = getattr(module, name)
            is_example_due = inspect.isfunction(value) or (inspect.isclass(value) and not inspect.isabstract(value))
            if is_example_due and not name.startswith("_"):
                found.setdefault(value, f"{prefix}.{name}")
    return {name: value for value, name in found.items()}


def examples_of(value):
    """The statements of the examples in a docstring, each with its expected output."""
    return doctest.DocTestParser().get_examples(value.__doc__ or "")


EXAMPLES = {name: examples_of(value) for name, value in public_objects().items()}
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] * any(SLOW.search(each.source) for each in examples))
    for name, examples in EXAMPLES.items()
]


@pytest.fixture(scope="module")
def short():
    """Training is cut to four steps, and calibration to twenty short runs."""
    plan = Training.plan

    def short_plan(self, *args, **defaults):
        return plan(self, *args, **defaults)._replace(steps=4, batch_size=32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "plan", short_plan)
        patch.setattr("flowdensity.training.distill.MIN_LABELS", 256)
        patch.setattr("flowdensity.training.distill.LABELS_PER_DIMENSION", 64)
        patch.setattr("flowdensity.diagnostics.sbc.NUTS", ShallowNUTS)
        calibrated = functools.partial(fd.simulation_based_calibration, simulations=20, draws=9, warmup=10)
        patch.setattr(fd, "simulation_based_calibration", calibrated)
        yield


@pytest.fixture(scope="module")
def prelude(short):
    """The names that docs/api/index.md promises to all examples, with models made by hand and short runs."""
    density = fd.FlowDensity(random_flow(jr.key(1), 2, size=0.3), solver=SOLVER)
    observed = jnp.array([0.5, -0.3])

    def model(y):
        theta = numpyro.sample("theta", density)
        numpyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)

    # `reweight` needs 25 draws.
    mcmc = ShortMCMC(ShallowNUTS(model), num_chains=2, chain_method="vectorized")
    mcmc.run(jr.key(3), y=observed)
    report = fd.results.FitReport(
        {"flow": fd.results.History((0, 2, 4), (3.0, 2.8, 2.7), (3.0, 2.8, 2.75), best_step=4, gain=(0.2, 0.03))},
        {"flow": 1.0},
        steps=fd.results.StepErrors((4,), (0.002,), 0.01),
        reference=fd.results.ReferenceChoice(None, 0.0, (-0.1, 0.02)),
    )
    return {
        "__name__": "example",
        "MCMC": ShortMCMC,
        "NUTS": ShallowNUTS,
        "SVI": ShortSVI,
        "az": az,
        "conditional": fd.FlowDensity(random_flow(jr.key(2), 2, 1, size=0.3), solver=SOLVER),
        "constraints": constraints,
        "context": np.random.default_rng(0).normal(size=(200, 1)),
        "data": np.asarray(density.sample(jr.key(4), (200,)), np.float64),
        "density": density,
        "dist": dist,
        "fast": amortized(density),
        "fd": fd,
        "jax": jax,
        "jnp": jnp,
        "jr": jr,
        "key": jr.key(0),
        "mcmc": mcmc,
        "model": model,
        "np": np,
        "numpyro": numpyro,
        "observed": observed,
        "optax": optax,
        "posterior": az.from_numpyro(mcmc, log_likelihood=False),
        "reparam": reparam,
        "report": report,
    }


@pytest.fixture
def names(prelude, tmp_path, monkeypatch):
    """A copy of the prelude, in a folder for files and without windows for figures."""
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    yield dict(prelude)
    plt.close("all")


@pytest.mark.parametrize("name", CASES)
def test_the_example_runs(name, names):
    assert EXAMPLES[name], f"{name} has no example in its docstring"
    for example in EXAMPLES[name]:
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            # So short a training has much to be warned of.
            warnings.simplefilter("ignore", UserWarning)
            # The mode of the interactive interpreter, which prints the value of an expression.
            exec(compile(example.source, f"<example of {name}>", "single"), names)
        if example.want:
            assert printed.getvalue() == example.want


def test_the_public_names_are_found():
    """One of each module, so that an empty module or a wrong filter is noticed."""
    expected = {
        "fd.fit_flow",
        "fd.FlowDensity",
        "fd.paths.CondOT",
        "fd.networks.UNet",
        "fd.objectives.ScoreStein",
        "fd.solvers.Adaptive",
        "fd.plots.plot_density",
        "fd.results.FitReport",
        "fd.checks.Coverage",
        "fd.checks.held_out_rows",
        "fd.models.GaussianFlow",
    }
    assert expected <= EXAMPLES.keys()
    assert not {"fd.AbstractLearnedDensity", "fd.checks.AbstractCheck", "fd.paths.AbstractPath"} & EXAMPLES.keys()
