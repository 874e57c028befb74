"""Trained densities shared by the whole suite: small, and fitted once."""

import dataclasses
import functools
import gc
import hashlib
import importlib.metadata
import math
import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
import pytest
from dependencies import digest_of_sources
from numpyro.distributions import constraints
from references import MIXTURE

import flowdensity as fd
from flowdensity.training.report import FitReport

# Most of the suite's time is compilation of what then runs for a moment, here and in the processes that tests start.
FLAGS = ["--xla_backend_optimization_level=0"]
# XLA's fusion emitters take twice as long to compile as the ones that they replace. Newer versions have no others, and end
# the process for a flag that they do not know.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for flag in FLAGS:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()


def pytest_configure(config: pytest.Config) -> None:
    # arviz 0.23 announces its successor once a day, on import.
    config.addinivalue_line("filterwarnings", r"ignore:\s*ArviZ is undergoing:FutureWarning")
    # Two processes share the cache below: one may read what the other has half written, and then compiles for itself.
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache:UserWarning")
    # Much of what is compiled is the same for several tests, and for the processes that they start.
    settings = {
        "jax_compilation_cache_dir": str(config.rootpath / ".pytest_cache" / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.05,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def memory_maps() -> tuple[int, float]:
    """How many memory maps this process has, and how many Linux allows it; other systems have no such limit."""
    try:
        limit = int(Path("/proc/sys/vm/max_map_count").read_text())
        return Path("/proc/self/maps").read_bytes().count(b"\n"), limit
    except OSError:
        return 0, math.inf


@pytest.fixture(scope="module", autouse=True)
def _forget_compiled_functions():
    """Clear JAX's caches when they hold a third of the memory maps that a process may have.

    Each compiled function holds some, and the whole suite would need more than Linux allows, 65,530 by default. No
    module needs two thirds of them.
    """
    yield
    maps, limit = memory_maps()
    if maps > limit / 3:
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()


class Fitted(NamedTuple):
    """A fitted density, its report, and what it was fitted to."""

    density: fd.FlowDensity
    report: FitReport
    data: np.ndarray
    context: np.ndarray | None


@functools.cache
def fits_folder(root: Path) -> Path:
    """The folder of the fits by this version of the fixtures, of the sources and packages that they stand on."""
    installed = sorted(f"{each.name} {each.version}" for each in importlib.metadata.distributions())
    settings = [f"{name}={os.environ.get(name)}" for name in ("XLA_FLAGS", "JAX_ENABLE_X64", "JAX_PLATFORMS")]
    sources = digest_of_sources(Path(__file__), (root / "tests", root))
    digest = hashlib.sha256("\n".join([sys.version, *installed, *settings, sources]).encode()).hexdigest()
    folder = root / ".pytest_cache" / "fits" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trained_once(fit: Callable[[], Fitted]) -> Callable[..., Fitted]:
    """A fixture of what `fit` returns, computed by one of the processes that share the suite and read by the others.

    It is kept for the next run: the slow tests come after the others, and want the same fits.
    """

    def fixture(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Fitted:
        own = tmp_path_factory.getbasetemp()
        taken = (own if worker_id == "master" else own.parent) / f"{fit.__name__}.taken"
        file = fits_folder(pytestconfig.rootpath) / f"{fit.__name__}.pickle"
        while not file.exists():
            try:
                taken.touch(exist_ok=False)
            except FileExistsError:
                time.sleep(0.5)
                continue
            try:
                partial = file.with_suffix(f".{os.getpid()}")
                partial.write_bytes(pickle.dumps(fit()))
                partial.replace(file)
            except BaseException:
                taken.unlink()  # whoever waits tries for itself, rather than for ever
                raise
        return pickle.loads(file.read_bytes())

    fixture.__doc__ = fit.__doc__
    return pytest.fixture(scope="session", name=fit.__name__)(fixture)


def small_network(seed: int, dim: int, context_dim: int = 0) -> fd.networks.ResidualMLP:
    return fd.networks.ResidualMLP(jr.key(seed), dim, context_dim, width=64, depth=1, experts=0)


@trained_once
def mixture_fit() -> Fitted:
    """Three overlapping components in two dimensions, learned from one Gaussian: the flow first, then its divergence."""
    data = MIXTURE.sample(np.random.default_rng(0), 10_000)
    with pytest.MonkeyPatch.context() as patched:
        # From the mixture itself there would be nothing to learn.
        patched.setattr("flowdensity.training.departure.choose_reference", lambda *args, **options: None)
        density, flow_report = fd.fit_flow(
            jr.key(1),
            data,
            network=small_network(2, 2),
            divergence=fd.ExactDivergence(),
            training=fd.Training(batch_size=256, steps=1500, learning_rate=2e-3),
            progress=False,
        )
    divergence, report = fd.fit_divergence(
        jr.key(9),
        density.model,
        data,
        training=fd.Training(batch_size=256, steps=3000, learning_rate=3e-3),
        progress=False,
    )
    report = dataclasses.replace(
        report,
        histories=flow_report.histories | report.histories,
        seconds=flow_report.seconds | report.seconds,
    )
    return Fitted(density.with_divergence(divergence), report, data, None)


@pytest.fixture(scope="session")
def exact_mixture(mixture_fit: Fitted) -> fd.FlowDensity:
    """The same density with its exact divergence."""
    return mixture_fit.density.with_divergence(fd.ExactDivergence())


class Plane(NamedTuple):
    """A density on a square grid: axis, spacing, log densities by the learned and by the exact divergence."""

    axis: np.ndarray
    cell: float
    learned: np.ndarray
    exact: np.ndarray

    def moments(self, log_density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each coordinate under a density on the grid that need not be normalized."""
        weights = np.exp(log_density - log_density.max())
        marginals = np.stack([weights.sum(1), weights.sum(0)]) / weights.sum()
        mean = marginals @ self.axis
        return mean, np.sqrt(marginals @ np.square(self.axis) - np.square(mean))


@pytest.fixture(scope="session")
def plane(mixture_fit: Fitted, exact_mixture: fd.FlowDensity) -> Plane:
    """The midpoint rule with spacing 0.1 is exact to far below 1e-4 for components no narrower than 0.3."""
    axis = np.arange(-5.95, 6.0, 0.1)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).astype(np.float32)
    learned, exact = (
        np.concatenate([np.asarray(d.log_prob(rows), np.float64) for rows in np.split(points, 4)])
        for d in (mixture_fit.density, exact_mixture)
    )
    return Plane(axis, 0.1**2, learned, exact)


CONDITIONAL_NOISE = np.array([[0.3, 0.1], [0.1, 0.2]])
CONDITIONAL_SLOPE = np.array([[1.5], [-0.8]])


@trained_once
def conditional_fit() -> Fitted:
    """x = (1, 5) + A c + noise with Gaussian noise and a standard-normal context c, shape (1,)."""
    rng = np.random.default_rng(3)
    context = rng.normal(size=(6000, 1))
    noise = rng.multivariate_normal(np.zeros(2), CONDITIONAL_NOISE, 6000)
    data = np.array([1.0, 5.0]) + context @ CONDITIONAL_SLOPE.T + noise
    density, report = fd.fit_flow(
        jr.key(4),
        data,
        context,
        network=small_network(5, 2, 1),
        divergence=fd.objectives.LangevinStein(),
        training=fd.Training(batch_size=256, steps=800, learning_rate=2e-3),
        progress=False,
    )
    return Fitted(density, report, data, context)


@trained_once
def positive_fit() -> Fitted:
    """Single positive numbers, gamma distributed with shape 3 and mean 6: a scalar event."""
    data = np.random.default_rng(6).gamma(3.0, 2.0, 4000)
    density, report = fd.fit_flow(
        jr.key(7),
        data,
        support=constraints.positive,
        network=small_network(8, 1),
        divergence=fd.objectives.LangevinStein(),
        training=fd.Training(batch_size=256, steps=500, learning_rate=2e-3),
        progress=False,
    )
    return Fitted(density, report, data, None)
