"""Fits of one shape compile once in a process, and leave nothing behind in it."""

import gc

import jax
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS
from references import random_flow

import flowdensity as fd

COMPILED = "/jax/core/compile/backend_compile_duration"
OPTIONS = {"training": fd.Training(steps=50, batch_size=16), "progress": False}
ANY_STEPS = {"tolerance": 10.0}
"""Any number of solver steps will do: another one would be a shape of its own."""
EVENTS = np.zeros((7, 2), np.float32)


@pytest.fixture(scope="module", autouse=True)
def compilations():
    """The durations of all compilations since the list was cleared."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: object) -> None:
        if event == COMPILED:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(autouse=True)
def one_gaussian(monkeypatch):
    """No mixture is chosen by chance: one with another number of components is a shape of its own."""
    monkeypatch.setattr("flowdensity.training.departure._mixture", lambda *args: None)


def rows(seed: int, count: int) -> np.ndarray:
    """Two uncorrelated normal columns, from which a flow has little to learn, and which no transform makes straighter."""
    return np.random.default_rng(seed).normal(size=(count, 2))


def network(seed: int) -> fd.networks.ResidualMLP:
    return fd.networks.ResidualMLP(jr.key(seed), 2, width=4, depth=1, experts=0)


def flow(seed: int, count: int = 2100, **options) -> fd.FlowDensity:
    options = OPTIONS | ANY_STEPS | options
    return fd.fit_flow(jr.key(seed), rows(seed, count), network=network(seed), **options)[0]


def model(seed: int) -> fd.models.AbstractProbabilityFlow:
    return random_flow(jr.key(seed), 2)


def diffusion(seed: int) -> fd.FlowDensity:
    return fd.fit_diffusion(
        jr.key(seed),
        rows(seed, 2100),
        prediction="noise",
        network=network(seed),
        divergence=fd.ExactDivergence(),
        **OPTIONS | ANY_STEPS,
    )[0]


def head(seed: int) -> fd.FlowDensity:
    divergence, _ = fd.fit_divergence(jr.key(seed), model(seed), rows(seed, 300), **OPTIONS)
    return fd.FlowDensity(model(seed), divergence=divergence)


def likelihood(seed: int) -> fd.FlowDensity:
    # Of another model more or fewer numbers of solver steps are tried, each of which is a shape of its own.
    training = fd.Training(steps=2, batch_size=16)
    return fd.fit_likelihood(
        jr.key(seed),
        rows(seed, 60),
        model=model(0),
        divergence=fd.ExactDivergence(),
        training=training,
        progress=False,
    )[0]


def amortized(seed: int) -> fd.AmortizedDensity:
    density = fd.FlowDensity(model(seed), solver=fd.FixedStep(4))
    return fd.distill(jr.key(seed), density, labels=64, width=4, **OPTIONS)[0]


FITS = {
    "flow": flow,
    "flow on few rows": lambda seed: flow(seed, 60, divergence=fd.ExactDivergence()),
    "diffusion": diffusion,
    "divergence": head,
    "likelihood": likelihood,
    "distillation": amortized,
}


def use(density) -> None:
    """What comes after a fit: densities, gradients and draws."""
    density.log_prob(EVENTS)
    jax.block_until_ready(_gradient(density, EVENTS[0]))
    density.sample(jr.key(0), (3,))


@jax.jit
def _gradient(density, event):
    return jax.grad(lambda event: density.log_prob(event))(event)


def in_use() -> tuple[int, int]:
    """Bytes in arrays, and compiled programs, that are alive in this process."""
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays()), len(jax.devices()[0].client.live_executables())


def assert_no_growth(before: tuple[int, int]) -> None:
    """What earlier tests have left may go meanwhile; nothing may come."""
    assert all(now <= then for now, then in zip(in_use(), before, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("fit", FITS.values(), ids=FITS.keys())
def test_a_second_fit_compiles_nothing_and_leaves_nothing(fit, compilations):
    """The second has other rows, another network and another key."""
    use(fit(0))
    before = in_use()
    compilations.clear()
    use(fit(1))
    assert compilations == []
    assert_no_growth(before)


@pytest.mark.slow
def test_ten_fits_do_not_grow(compilations):
    use(flow(0))
    before = in_use()
    compilations.clear()
    for seed in range(1, 11):
        use(flow(seed))
    assert compilations == []
    assert_no_growth(before)


@pytest.mark.slow
def test_a_second_run_of_nuts_compiles_next_to_nothing(compilations):
    """numpyro makes two small functions anew for each `MCMC`; the sampler itself is found again."""
    density = amortized(0)

    def posterior(y):
        theta = numpyro.sample("theta", density)
        numpyro.sample("y", dist.Normal(theta, 0.3).to_event(1), obs=y)

    def run(seed: int) -> int:
        compilations.clear()
        mcmc = MCMC(
            NUTS(posterior),
            num_warmup=10,
            num_samples=10,
            num_chains=2,
            chain_method="vectorized",
            progress_bar=False,
        )
        mcmc.run(jr.key(seed), np.array([0.1 * seed, 0.2], np.float32))
        return len(compilations)

    # Other tests of this process may have compiled a part of the first run.
    jax.clear_caches()
    assert run(0) > 20
    assert run(1) <= 2
