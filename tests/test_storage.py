"""Densities in files come back: every kind of them, bit by bit, here and in another process."""

import dataclasses
import functools
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from references import MIXTURE, NAMED, NAMED_CONTEXT, amortized, cases, gaussian_flow, random_flow, to64, x64

import flowdensity as fd
from flowdensity._registry import NAMES
from flowdensity.data.scaling import Scaling
from flowdensity.data.supports import joint
from flowdensity.data.tables import Sample
from flowdensity.data.transforms.interface import AbstractTransform
from flowdensity.data.transforms.johnson import JohnsonSU
from flowdensity.data.transforms.marginal import MarginalGaussianization
from flowdensity.data.transforms.radial import RadialGaussianization
from flowdensity.divergence.stein import DivergenceHead
from flowdensity.models.flows import off_path, with_network, with_reference
from flowdensity.references.conditional import ConditionalMixture
from flowdensity.references.fit import fit_reference
from flowdensity.references.mixture import GaussianMixture
from flowdensity.storage.description import Reader, describe
from flowdensity.storage.files import load, load_report, save
from flowdensity.training.loop import History

FAST = fd.FixedStep(4)
BETAS = np.linspace(1e-3, 0.2, 50)
BASE = dist.Normal(0.5, 2.0).expand([2]).to_event(1)
CONTEXT = np.array([[0.5, -1.0], [2.0, 0.3], [0.0, 0.0]], np.float32)


class Case(NamedTuple):
    """A density, and what `load` needs beside its file."""

    density: Any
    network: Any = None


class Net(fd.networks.AbstractNetwork):
    """A user's own network."""

    rates: jax.Array
    slope: jax.Array
    power: float
    dim: int = eqx.field(static=True, default=2)
    context_dim: int = eqx.field(static=True, default=0)

    def __call__(self, angle, state, context):
        hidden = jnp.tanh(self.rates @ state + angle * self.slope)
        return self.power * hidden, hidden


class Velocity(eqx.Module):
    """A user's own velocity."""

    rates: jax.Array

    def __call__(self, t, x, context):
        return jnp.asarray(jnp.tanh(self.rates @ x) * (1.0 + t), float)


def rotate(parameters: Any, t: Any, x: jax.Array, context: Any) -> jax.Array:
    return parameters["rates"] @ x + parameters["shift"] * t


def conditional_velocity(t: Any, x: jax.Array, context: jax.Array) -> jax.Array:
    return 0.3 * x + jnp.sum(context)


def noise_guess(t: Any, x: jax.Array, context: Any) -> jax.Array:
    return 0.9 * x / (1.0 + 0.01 * t)


def own_network() -> Net:
    return Net(0.3 * jr.normal(jr.key(5), (2, 2)), jnp.ones(2), 1.5)


def own_velocity(dtype: Any = None) -> Velocity:
    return Velocity(0.4 * jr.normal(jr.key(6), (2, 2), dtype))


def own_partial() -> Any:
    parameters = {"shift": jnp.ones(2), "rates": np.array([[0.1, -0.5], [0.4, 0.0]], np.float32)}
    return jax.tree_util.Partial(rotate, parameters)


def dense(model: Any, **options: Any) -> fd.FlowDensity:
    return fd.FlowDensity(model, solver=FAST, **options)


def shaped(
    flow: fd.models.GaussianFlow, support: constraints.Constraint, event_shape: tuple[int, ...], sites: Any = None
) -> fd.models.GaussianFlow:
    location = np.linspace(-0.2, 0.3, flow.dim)
    scale = np.diag(np.linspace(0.5, 1.2, flow.dim)) + 0.1
    return eqx.tree_at(lambda m: m.scaling, flow, Scaling(location, scale, support, event_shape, sites))


def with_coordinatewise_transforms(scaling: Scaling) -> Scaling:
    """Every other coordinate has a long tail, and the first an edge."""
    parameters = np.stack([np.full(scaling.dim, value) for value in (0.1, 1.5, -0.2, 1.2)])
    tails = JohnsonSU(parameters, np.arange(scaling.dim) % 2 == 0)
    edges = MarginalGaussianization(np.zeros(1, int), np.array([[-0.5, -0.1, 1.0]]), np.array([[0.1, 0.2, 0.9]]))
    return transformed(scaling, tails, edges)


def with_radial_transform(scaling: Scaling) -> Scaling:
    """Tails are long in all directions together."""
    whitener = np.eye(scaling.dim) + 0.2
    return transformed(scaling, RadialGaussianization(np.full(scaling.dim, 0.1), whitener, 30.0))


def transformed(scaling: Scaling, *transforms: AbstractTransform) -> Scaling:
    parts = (np.asarray(part) for part in (scaling.location, scaling.scale))
    return Scaling(*parts, scaling.support, scaling.event_shape, scaling.sites, transforms)


def named() -> fd.models.GaussianFlow:
    support = joint([constraints.real, constraints.positive, constraints.interval(0.0, 5.0)], NAMED.shapes)
    flow = shaped(random_flow(jr.key(2), 4, 3), support, (4,), NAMED)
    contexts = Scaling(np.zeros(3), np.ones(3), constraints.real, (3,), NAMED_CONTEXT)
    return eqx.tree_at(lambda m: m.context_scaling, flow, contexts)


def stein(model: fd.models.AbstractProbabilityFlow, width: int) -> fd.SteinDivergence:
    """Of no model in particular: a function like any other."""
    head = DivergenceHead(
        jr.key(0),
        model.dim,
        (width,),
        span=model.times(1),
        reach=model.reach,
        scale=jnp.ones(()),
        bound=jnp.asarray(9.0),
        width=8,
    )
    weight = jr.normal(jr.key(1), head.network.outward.weight.shape)
    head = eqx.tree_at(lambda h: h.network.outward.weight, head, weight)
    return fd.SteinDivergence(eqx.tree_at(lambda h: h.offset, head, jnp.linspace(0.1, 0.4, 4)))


def diffusion(prediction: str, path: fd.paths.AbstractPath) -> fd.models.GaussianFlow:
    flow = random_flow(jr.key(3), 2)
    return fd.models.GaussianFlow(flow.network, path, flow.scaling, flow.context_scaling, flow.reach, prediction)


def image() -> fd.models.GaussianFlow:
    network = fd.networks.UNet(jr.key(0), (2, 4, 1), width=2, scales=2, frequencies=2)
    last = 0.3 * jr.normal(jr.key(1), network.outward.weight.shape)
    network = eqx.tree_at(lambda n: n.outward.weight, network, last)
    return with_network(shaped(random_flow(jr.key(0), 8), constraints.unit_interval, (2, 4, 1)), network)


def conditional_mixture() -> ConditionalMixture:
    rng = np.random.default_rng(0)
    table = Sample(jnp.asarray(rng.normal(size=(100, 2)), float), jnp.asarray(rng.normal(size=(100, 2)), float))
    reference = fit_reference(table, 2, 0.1).reference()
    assert isinstance(reference, ConditionalMixture)
    return reference


FLOW = random_flow(jr.key(0), 2)
START = GaussianMixture(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances)
CONDITIONAL = random_flow(jr.key(1), 2, 2)
CASES: dict[str, Callable[[], Case]] = {
    "flow": lambda: Case(dense(FLOW)),
    "tails and edges": lambda: Case(
        dense(eqx.tree_at(lambda m: m.scaling, FLOW, with_coordinatewise_transforms(FLOW.scaling)))
    ),
    "tails along the radius": lambda: Case(
        dense(eqx.tree_at(lambda m: m.scaling, FLOW, with_radial_transform(FLOW.scaling)))
    ),
    "a mixture to start at": lambda: Case(dense(with_reference(FLOW, START))),
    "a conditional mixture to start at": lambda: Case(
        dense(with_reference(CONDITIONAL, conditional_mixture()), context=CONTEXT[0])
    ),
    "validate_args": lambda: Case(dense(FLOW, validate_args=True)),
    "without validate_args": lambda: Case(dense(FLOW, validate_args=False)),
    "without its context": lambda: Case(dense(CONDITIONAL)),
    "one context": lambda: Case(dense(CONDITIONAL, context=CONTEXT[0])),
    "contexts": lambda: Case(dense(CONDITIONAL, context=CONTEXT)),
    "contexts with axes": lambda: Case(
        dense(fd.VelocityField(conditional_velocity, BASE, context_shape=(2, 1)), context=CONTEXT[:, None, :, None]),
        conditional_velocity,
    ),
    "named": lambda: Case(dense(named(), context={"s": CONTEXT, "t": np.float32(0.3)})),
    "a positive scalar": lambda: Case(dense(shaped(random_flow(jr.key(0), 1), constraints.positive, ()))),
    "a simplex": lambda: Case(dense(shaped(FLOW, constraints.simplex, (3,)))),
    "HutchinsonDivergence": lambda: Case(dense(FLOW, divergence=fd.HutchinsonDivergence(jr.key(7), 2))),
    "a raw key": lambda: Case(dense(FLOW, divergence=fd.HutchinsonDivergence(jr.PRNGKey(7), 2, "gaussian"))),
    "another generator": lambda: Case(dense(FLOW, divergence=fd.HutchinsonDivergence(jr.key(7, impl="rbg"), 2))),
    "HutchPlusPlusDivergence": lambda: Case(dense(FLOW, divergence=fd.HutchPlusPlusDivergence(jr.key(7), 6))),
    "SteinDivergence": lambda: Case(dense(FLOW, divergence=stein(FLOW, 16))),
    "Trigonometric": lambda: Case(dense(eqx.tree_at(lambda m: m.path, FLOW, fd.paths.Trigonometric()))),
    **{
        f"Diffusion of {prediction}": functools.partial(
            lambda p: Case(dense(diffusion(p, fd.paths.VariancePreserving()))), prediction
        )
        for prediction in ("velocity", "noise", "data", "score")
    },
    "VarianceExploding": lambda: Case(dense(diffusion("velocity", fd.paths.VarianceExploding(0.02, 50.0)))),
    "off its path": lambda: Case(dense(off_path(FLOW))),
    "UNet": lambda: Case(dense(image(), divergence=fd.HutchinsonDivergence(jr.key(0)))),
    "Adaptive": lambda: Case(fd.FlowDensity(FLOW, solver=fd.solvers.Adaptive(1e-4, 1e-4))),
    "a network of one's own": lambda: Case(dense(with_network(FLOW, own_network())), own_network()),
    "a function": lambda: Case(dense(fd.VelocityField(noise_guess, BASE, times=(1.0, 0.2))), noise_guess),
    "a Partial": lambda: Case(dense(fd.VelocityField(own_partial(), BASE)), own_partial()),
    "a module": lambda: Case(dense(fd.VelocityField(own_velocity(), BASE)), own_velocity()),
    "bfloat16": lambda: Case(dense(fd.VelocityField(own_velocity(jnp.bfloat16), BASE)), own_velocity(jnp.bfloat16)),
    "DDPM": lambda: Case(dense(fd.from_ddpm(noise_guess, (2,), betas=BETAS)), noise_guess),
    "DDPM of velocities": lambda: Case(
        dense(fd.from_ddpm(own_velocity(), (2,), betas=BETAS, predicts="velocity")), own_velocity()
    ),
    "EDM": lambda: Case(dense(fd.from_edm(own_velocity(), (2,))), own_velocity()),
    "EDM's denoiser": lambda: Case(dense(fd.from_edm(own_velocity(), (2,), preconditioned=True)), own_velocity()),
    "AmortizedDensity": lambda: Case(amortized(dense(CONDITIONAL, context=CONTEXT, validate_args=True))),
}


def parts(density: Any) -> Any:
    if isinstance(density, fd.AmortizedDensity):
        return density.state_log_prob, parts(density.flow)
    return density.model, density.divergence, density.solver, density.context


def assert_same(ours: Any, theirs: Any) -> None:
    """To the last bit, and of the same kind."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if not eqx.is_array(one):
            assert type(one) is type(other)
            assert one == other
            continue
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jr.key_data(one), jr.key_data(other)
        assert one.weak_type == other.weak_type
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def log_probs(density: Any) -> np.ndarray:
    flow = density.flow
    if flow.context is None:
        density = density.given(jnp.asarray(CONTEXT))
        flow = density
    noise = np.random.default_rng(0).normal(size=(5, *(1,) * len(flow.batch_shape), flow.model.dim))
    events = jax.vmap(flow.model.scaling.unwhiten)(jnp.asarray(noise.reshape(5, -1), float))
    return np.asarray(density.log_prob(events.reshape(*noise.shape[:-1], *flow.event_shape)))


@pytest.mark.parametrize("name", cases({name: name for name in CASES}, CASES.keys() - {"UNet"}))
def test_a_density_comes_back(name, tmp_path):
    density, network = CASES[name]()
    file = tmp_path / "density.flow"
    save(file, density)
    again = load(file, network=network)
    assert type(again) is type(density)
    assert_same(parts(again), parts(density))
    assert jax.tree.structure(again) == jax.tree.structure(density)
    assert (again.batch_shape, again.event_shape) == (density.batch_shape, density.event_shape)
    assert again.support == density.support
    assert again.__dict__.get("_validate_args") == density.__dict__.get("_validate_args")
    assert load_report(file) is None
    assert list(tmp_path.iterdir()) == [file]
    # A network is asked for exactly where the file lacks one.
    with pytest.raises(
        ValueError, match=r"^load expected (no )?`network`, since the file has .*Fix: (network = None|fd\.load)"
    ):
        load(file, network=None if network else noise_guess)


QUICK = ("named", "a module", "AmortizedDensity")


@pytest.mark.parametrize("name", cases({name: name for name in CASES}, QUICK))
def test_log_prob_comes_back(name, tmp_path):
    density, network = CASES[name]()
    save(tmp_path / "density.flow", density)
    expected = log_probs(density)
    assert np.isfinite(expected).all()
    assert np.unique(expected).size == expected.size
    # Compiled anew: equal densities would share one compiled function.
    jax.clear_caches()
    np.testing.assert_array_equal(log_probs(load(tmp_path / "density.flow", network=network)), expected)


def sample() -> fd.AmortizedDensity:
    """An amortized density with most of what a density can have."""
    model = named()
    network = fd.networks.ResidualMLP(jr.key(8), 4, 3, width=8, depth=1, frequencies=2, fourier_features=2)
    weights = jr.normal(jr.key(9), (4, 8)), 0.1 * jr.normal(jr.key(10), (16, 4, 7))
    network = eqx.tree_at(lambda n: (n.outward.weight, n.experts), network, weights)
    mixture = GaussianMixture(
        np.ones(2), 0.3 * np.array([np.ones(4), -np.ones(4)]), np.tile(0.7 * np.eye(4), (2, 1, 1))
    )
    model = with_reference(with_network(model, network), mixture)
    model = eqx.tree_at(lambda m: m.scaling, model, with_radial_transform(model.scaling))
    context = {"s": jnp.asarray(CONTEXT), "t": jnp.asarray(0.3)}
    return amortized(fd.FlowDensity(model, context, divergence=stein(model, 8), solver=fd.FixedStep(6)))


@pytest.mark.slow
def test_log_prob_is_the_same_in_another_process(tmp_path):
    """Under another seed of Python's hashes, which orders sets, and compiled anew."""
    densities = {"sample": sample(), "flow": sample().flow, "probes": CASES["HutchinsonDivergence"]().density}
    for name, density in densities.items():
        save(tmp_path / f"{name}.flow", density)
    script = (
        "import pathlib, sys, numpy, test_storage as t\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "numpy.savez(folder / 'out.npz', **{file.stem: t.log_probs(t.load(file)) for file in folder.glob('*.flow')})"
    )
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment, check=True, timeout=300)
    with np.load(tmp_path / "out.npz") as found:
        for name, density in densities.items():
            np.testing.assert_array_equal(found[name], log_probs(density), err_msg=name)


@pytest.mark.parametrize(
    "support",
    [
        *(getattr(constraints, name) for name in ("real", "positive", "unit_interval", "simplex", "ordered_vector")),
        *(getattr(constraints, name) for name in ("real_vector", "corr_cholesky", "softplus_lower_cholesky")),
        constraints.greater_than(0.1),
        constraints.less_than(np.float32(0.1)),
        constraints.interval(-np.inf, 3),
        constraints.open_interval(np.array([0.0, 1.0]), np.array([1.0, 2.0])),
        constraints.independent(constraints.greater_than_eq(jnp.asarray([1.0, 2.0])), 1),
        constraints.independent(constraints.cat([constraints.positive, constraints.real], -1, [2, 1]), 1),
        constraints.zero_sum(2),
        joint([constraints.simplex, constraints.less_than_eq(0.5)], ((2, 3), ())),
    ],
    ids=repr,
)
def test_a_support_comes_back(support):
    tensors = {}
    tree = json.loads(json.dumps(describe(support, "support", tensors), allow_nan=False))
    again = Reader("load", tensors).restore(tree)
    assert type(again) is type(support)
    assert np.all(again.eq(support))
    assert repr(again) == repr(support)
    if type(support).__mro__[1].__name__ == "_SingletonConstraint":
        assert again is support
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(support), strict=True):
        assert type(ours) is type(theirs)


def test_a_weak_type_comes_back():
    for array in (jnp.asarray(jnp.inf), jnp.full((2, 3), 0.25), jnp.asarray(3), jnp.ones(2)):
        tensors = {}
        again = Reader("load", tensors).restore(describe(array, "array", tensors))
        assert_same(again, array)


def some_report() -> fd.results.FitReport:
    """A report with all that a report can have, and numbers that are hard to write."""
    return fd.results.FitReport(
        {
            "a": History((0, 9), (np.nan, 1.5), (np.inf, 2.0), 9, 1.25, "interrupted", (0.3, 0.1)),
            "b": History(),
        },
        {"a": 1.25, "more": 1e-320},
        fd.results.Residuals(np.linspace(0, 1, 3), ("1", "g"), np.ones((2, 2)), np.full((2, 2), np.nan)),
        fd.results.StepErrors((4, 6), (0.1, 1 / 3), 0.02),
        fd.results.Amortization((0.1, -0.0), (0.2, 0.01), 0.05, (-np.inf, 0.1), 0.0, 0.9),
        fd.results.ReferenceChoice(3, 0.01, (1.2, 0.1), (0.4, 0.2)),
        "columns: whitened, none transformed",
        "divergence: exact",
        ("calibration", "solver steps"),
    )


def test_a_report_comes_back(positive_fit, tmp_path):
    density, report, *_ = positive_fit
    save(tmp_path / "density.flow", density, report)
    np.testing.assert_equal(_plain(load_report(tmp_path / "density.flow")), _plain(report))
    assert load_report(tmp_path / "density.flow").summary() == report.summary()
    np.testing.assert_array_equal(log_probs(load(tmp_path / "density.flow")), log_probs(density))

    whole = some_report()
    save(tmp_path / "density.flow", density, whole)
    again = load_report(tmp_path / "density.flow")
    np.testing.assert_equal(_plain(again), _plain(whole))
    assert list(again.histories) == ["a", "b"]


def _plain(value: Any) -> Any:
    """Without classes, of which those with arrays do not compare."""
    if dataclasses.is_dataclass(value):
        return type(value).__name__, _plain(vars(value))
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_double_precision_wants_a_session_with_it(tmp_path):
    with x64():
        density = dense(to64(FLOW), divergence=fd.HutchinsonDivergence(jr.key(0)))
        save(tmp_path / "density.flow", density)
        again = load(tmp_path / "density.flow")
        assert_same(parts(again), parts(density))
        expected = log_probs(density)
        assert expected.dtype == np.float64
        np.testing.assert_array_equal(log_probs(again), expected)
    with pytest.raises(
        ValueError, match=r'^load expected a session with 64-bit .*Fix: jax\.config\.update\("jax_enable_x64"'
    ):
        load(tmp_path / "density.flow")


def test_single_precision_loads_in_a_session_with_double(tmp_path):
    save(tmp_path / "density.flow", dense(FLOW))
    with x64():
        again = load(tmp_path / "density.flow")
        assert_same(again.model, FLOW)


def test_a_flax_network_comes_back(tmp_path):
    nnx = pytest.importorskip("flax.nnx")

    class Stretch(nnx.Module):
        def __init__(self, rates):
            self.rates = nnx.Param(jnp.asarray(rates))

    def velocity(network, t, x, context):
        return network.rates[...] * x

    def partial(rates):
        return jax.tree_util.Partial(velocity, Stretch(rates))

    density = dense(fd.VelocityField(partial([0.5, -0.3]), BASE))
    save(tmp_path / "density.flow", density)
    again = load(tmp_path / "density.flow", network=partial([0.0, 0.0]))
    np.testing.assert_array_equal(log_probs(again), log_probs(density))


@pytest.mark.parametrize(
    ("saved", "handed", "message"),
    [
        (own_velocity(), noise_guess, r"of type Velocity, as saved; got one of type function"),
        (own_velocity(), Velocity(jnp.ones((2, 3))), r"of float32 and shape \(2, 2\), .* shape \(2, 3\)"),
        (own_velocity(), own_velocity(jnp.bfloat16), r"of float32 and .* got one .* of bfloat16"),
        (own_partial(), jax.tree_util.Partial(rotate, {"rates": jnp.eye(2)}), r"number of arrays is 2, .* arrays is 1"),
        (
            noise_guess,
            lambda t, x, context: 0.91 * x / (1.0 + 0.01 * t),
            r"the velocity that the density had when it was",
        ),
    ],
    ids=["type", "shape", "dtype", "number", "code"],
)
def test_another_network_is_refused(tmp_path, saved, handed, message):
    save(tmp_path / "density.flow", dense(fd.VelocityField(saved, BASE)))
    with pytest.raises(
        ValueError, match=rf"^load expected .*{message}.*Fix: (network = density\.model\.network|fd\.load)"
    ):
        load(tmp_path / "density.flow", network=handed)


def test_a_place_that_is_none_is_refused(tmp_path):
    for file in (tmp_path, tmp_path / "nowhere" / "density.flow"):
        with pytest.raises(ValueError, match=rf"^save expected `file` in an existing folder.*got '{file}'.*Fix: "):
            save(file, dense(FLOW))
    assert not list(tmp_path.iterdir())


REPORTS = (
    fd.results.FitReport,
    fd.results.History,
    fd.results.Residuals,
    fd.results.ReferenceChoice,
    fd.results.StepErrors,
    fd.results.Amortization,
)


def public_classes():
    """All public classes whose objects belong to a density or its report."""
    of_files = eqx.Module, fd.AbstractLearnedDensity, *REPORTS
    for space in (fd, fd.paths, fd.divergences, fd.networks, fd.solvers, fd.models, fd.results):
        for name in dir(space):
            thing = getattr(space, name)
            if not name.startswith("Abstract") and inspect.isclass(thing) and issubclass(thing, of_files):
                yield thing


def test_every_public_class_is_saved_by_some_case():
    """A forgotten class would be noticed at a user's save; the cases come back one by one above."""
    names = {NAMES[cls] for cls in public_classes()}
    assert {"FlowDensity", "CondOT", "UNet", "SteinDivergence", "FitReport"} <= names
    seen: set[str] = set()

    def collect(tree):
        if isinstance(tree, dict):
            seen.update({tree["type"]} if "type" in tree else ())
            tree = list(tree.values())
        for item in tree if isinstance(tree, list) else ():
            collect(item)

    for case in CASES.values():
        collect(describe(case().density, "density", {}))
    collect(describe(some_report(), "report", {}))
    assert names - seen == set()


class OwnDivergence(fd.divergences.AbstractDivergence):
    scale: jax.Array

    def __call__(self, model, time, state, context):
        velocity, rate = fd.ExactDivergence()(model, time, state, context)
        return velocity, self.scale * rate


class Halved(fd.paths.AbstractPath):
    speed: float = eqx.field(static=True, default=1.0)

    def coefficients(self, t):
        return t, 1.0 - t


class OwnSolver(fd.solvers.AbstractSolver):
    inner: fd.solvers.AbstractSolver

    def integrate(self, field, times, start, reverse):
        return self.inner.integrate(field, times, start, reverse)


def test_objects_of_the_users_own_classes_come_back(tmp_path):
    """A path, a divergence, a solver and a whole model; the classes are handed over."""
    path = eqx.tree_at(lambda m: m.path, FLOW, Halved(2.0))
    own = fd.FlowDensity(path, divergence=OwnDivergence(jnp.asarray(2.0)), solver=OwnSolver(fd.FixedStep(5)))
    for density, classes in (
        (own, (Halved, OwnDivergence, OwnSolver)),
        (dense(gaussian_flow()), (type(gaussian_flow()),)),
    ):
        save(tmp_path / "density.flow", density)
        again = load(tmp_path / "density.flow", classes=classes)
        np.testing.assert_array_equal(again.log_prob(np.zeros(2)), density.log_prob(np.zeros(2)))
        assert type(again.model) is type(density.model)
        name = classes[0].__qualname__
        for missing in ((), classes[1:]):
            fix = rf"Fix: fd\.load\(file, classes=\[{name}\]\)"
            with pytest.raises(ValueError, match=rf"^load expected the class {name} in `classes`.*{fix}"):
                load(tmp_path / "density.flow", classes=missing)


def test_classes_that_cannot_be_told_apart_or_are_none_are_refused(tmp_path):
    file = tmp_path / "density.flow"
    save(file, dense(eqx.tree_at(lambda m: m.path, FLOW, Halved(2.0))))

    class Other(fd.paths.AbstractPath):
        power: float = 1.0

        def coefficients(self, t):
            return t, 1.0 - t

    Other.__qualname__ = "Halved"
    for classes, error, says in (
        (Halved, TypeError, r"a list of classes.*Fix: classes = \[classes\]"),
        ([Halved()], TypeError, r"a list of classes.*Fix: classes = \[\]"),
        (None, TypeError, "a list of classes"),
        ([Halved, Other], ValueError, "with different names"),
        ([Other], ValueError, r"the class Halved with the fields \['speed'\].*got one with \['power'\]"),
    ):
        with pytest.raises(error, match=rf"^load expected .*{says}"):
            load(file, classes=classes)


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    class Own(fd.divergences.AbstractDivergence):
        function: object = eqx.field(static=True)

        def __call__(self, model, time, state, context):
            return fd.ExactDivergence()(model, time, state, context)

    file = tmp_path / "density.flow"
    file.write_bytes(b"what was there")
    layer = eqx.nn.Conv2d(1, 2, 3, padding=2, key=jr.key(0))
    for density, what in (
        (dense(FLOW, divergence=Own(lambda x: x)), "density/divergence/function` is of type function"),
        (
            dense(eqx.tree_at(lambda m: m.network.inward, image(), layer)),
            "density/model/network/inward` is of type Conv2d",
        ),
    ):
        with pytest.raises(TypeError, match=rf"^save expected .*`{what}.*Fix: "):
            save(file, density)
    with pytest.raises(TypeError, match=r"^save expected `density` of type .*got Independent.*Fix: "):
        save(file, dense(CONDITIONAL, context=CONTEXT).to_event(1))
    with pytest.raises(TypeError, match=r"^save expected `report` of type FitReport; got dict.*Fix: "):
        save(file, dense(FLOW), {})
    assert file.read_bytes() == b"what was there"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path, monkeypatch, error):
    file = tmp_path / "density.flow"
    save(file, dense(FLOW))
    before = file.read_bytes()

    def interrupted(number):
        raise error("the disk is full")

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(error):
        save(file, dense(CONDITIONAL))
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
