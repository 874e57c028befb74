"""How long from samples to a posterior? Every stage timed in a process of its own, from its start to the summary.

    python benchmarks/time.py                      # every cell; resumes
    python benchmarks/time.py --only 'moons-*'     # the cells of these names: table-method-key
    python benchmarks/time.py --cached             # only the table, from the cells that are there

Writes the table in README.md. A prior is learned from the rows of a table, a point is observed with noise, and NUTS samples the
posterior in two chains of 1,500 transitions each. Run it on cores that do nothing else.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median

STARTED = time.perf_counter()

import arviz as az  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax.random as jr  # noqa: E402
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from columns import Split  # noqa: E402
from mixtures import Mixture  # noqa: E402
from numpyro.infer import MCMC, NUTS  # noqa: E402
from sklearn.datasets import make_moons  # noqa: E402
from sklearn.mixture import GaussianMixture  # noqa: E402
from tables import cells_of, markdown, provenance, replace_block  # noqa: E402

import flowdensity as fd  # noqa: E402

COMPILATION = "/jax/core/compile/backend_compile_duration"
KEYS = 3
NOISE = 0.3
"""Standard deviation of the noise of the observed point, in units of the table."""
COMPONENTS = range(1, 21)
PAGE = Path("README.md")
STAGES = ("import", "fit", "distill", "NUTS")


def moons() -> Split:
    """The example of the README."""
    (rows, _), (test, _) = (make_moons(n, noise=0.1, random_state=seed) for n, seed in ((5000, 0), (2000, 1)))
    return Split(rows, test)


def mixture() -> Split:
    """A mixture of six Gaussians in eight dimensions."""
    law = Mixture(8, seed=0)
    return Split(law.sample(10_000, seed=1), law.sample(2_000, seed=2))


def chain() -> Split:
    """x_j = 0.5 z_j + 0.5 sin(2 x_{j - 1}) in eight dimensions: no mixture of few Gaussians is near."""

    def draw(rows: int, seed: int) -> np.ndarray:
        noise = 0.5 * np.random.default_rng(seed).normal(size=(rows, 8))
        for j in range(1, 8):
            noise[:, j] += 0.5 * np.sin(2.0 * noise[:, j - 1])
        return noise

    return Split(draw(10_000, 0), draw(2_000, 1))


TABLES = {"moons": moons, "mixture-8": mixture, "chain-8": chain}


class Stages:
    """Wall seconds of each stage, and what the compiler took of them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.compiling: dict[str, float] = {}
        self._compiled = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration: float, **_: object) -> None:
        if event == COMPILATION:
            self._compiled += duration

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what is done inside."""
        started, before = time.perf_counter(), self._compiled
        yield
        self.seconds[name] = time.perf_counter() - started
        self.compiling[name] = self._compiled - before


def learned(stages: Stages, key: jax.Array, rows: np.ndarray) -> tuple[dist.Distribution, dist.Distribution]:
    """A flow, and what it is distilled into for the sampler."""
    fit_key, distill_key = jr.split(key)
    with stages.stage("fit"):
        density, _ = fd.fit_flow(fit_key, rows, progress=False)
    with stages.stage("distill"):
        fast, _ = fd.distill(distill_key, density, progress=False)
    return density, fast


def gaussians(stages: Stages, key: jax.Array, rows: np.ndarray) -> tuple[dist.Distribution, dist.Distribution]:
    """scikit-learn's mixture of Gaussians, with the number of components of least BIC."""
    seed = int(jr.randint(key, (), 0, 2**30))
    with stages.stage("fit"):
        fits = [GaussianMixture(number, random_state=seed).fit(rows) for number in COMPONENTS]
        best = min(fits, key=lambda fit: fit.bic(rows))
    density = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.asarray(best.weights_, float)),
        dist.MultivariateNormal(
            jnp.asarray(best.means_, float), covariance_matrix=jnp.asarray(best.covariances_, float)
        ),
    )
    return density, density


METHODS: dict[str, Callable[..., tuple[dist.Distribution, dist.Distribution]]] = {
    "flow": learned,
    "flow-cached": learned,
    "mixture": gaussians,
}


def measure(table: str, method: str, seed: int) -> dict:
    """From the start of this process to the summary of the posterior, and then the held-out score."""
    stages = Stages()
    stages.seconds["import"] = time.perf_counter() - STARTED
    train, test = TABLES[table]()
    density, prior = METHODS[method](stages, jr.key(seed), train)

    def model(y: np.ndarray) -> None:
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Normal(theta, NOISE).to_event(1), obs=y)

    with stages.stage("NUTS"):
        mcmc = MCMC(
            NUTS(model), num_warmup=500, num_samples=1000, num_chains=2, chain_method="vectorized", progress_bar=False
        )
        mcmc.run(jr.key(seed), test[0])
        summary = az.summary(az.from_numpyro(mcmc, log_likelihood=False))
    wall, used = time.perf_counter() - STARTED, resource.getrusage(resource.RUSAGE_SELF)
    scores = {
        name: np.concatenate([np.asarray(each.log_prob(jnp.asarray(rows, float))) for rows in np.array_split(test, 4)])
        for name, each in (("score", density), ("score in NUTS", prior))
    }
    return {
        "seconds": stages.seconds,
        "compiling": stages.compiling,
        "wall": wall,
        "CPU": used.ru_utime + used.ru_stime,
        "MB": used.ru_maxrss / 1024,
        "ess": float(summary["ess_bulk"].astype(float).min()),
        **{name: float(np.mean(each, dtype=np.float64)) for name, each in scores.items()},
    }


def apart(table: str, method: str, seed: int) -> dict:
    """The same in a process of its own; of `flow-cached` in a second one, which finds in JAX's cache what the first compiled."""
    command = [sys.executable, __file__, "--measure", table, method, str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        environment = os.environ | (cache if method == "flow-cached" else {})
        for _ in range(2 if method == "flow-cached" else 1):
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def write(cells: dict[str, dict]) -> str:
    """The table of medians over keys, of the tables and methods with all of their keys."""
    header = ["", *STAGES, "wall", "of it compiling", "CPU", "peak MB", "score", "in NUTS"]
    lines = []
    for table in TABLES:
        for method in METHODS:
            found = [cells[name] for seed in range(KEYS) if (name := f"{table}-{method}-{seed}") in cells]
            if len(found) < KEYS:
                continue

            def middle(read: Callable[[dict], float], found: list[dict] = found) -> float:
                return median(read(each) for each in found)

            stages = [middle(lambda each, stage=stage: each["seconds"].get(stage, 0.0)) for stage in STAGES]
            compiling = middle(lambda each: sum(each["compiling"].values()))
            totals = [
                middle(lambda each, name=name: each[name]) for name in ("wall", "CPU", "MB", "score", "score in NUTS")
            ]
            wall, cpu, memory, *scores = totals
            numbers = [*stages, wall, compiling, cpu, memory]
            lines.append([f"{table}, {method}", *(f"{n:.0f}" for n in numbers), *(f"{score:.3f}" for score in scores)])
    caption = (
        f"Seconds; medians of {KEYS} keys. `score`: mean log density of 2,000 held-out rows, nats. `flow-cached` finds what an "
        'earlier process compiled, after `jax.config.update("jax_compilation_cache_dir", "jax-cache")`.'
    )
    made = provenance("python benchmarks/time.py", cells.values())
    return f"{markdown(header, lines)}\n\n{caption} {made}"


def main() -> None:
    """Measure what is missing, and write the table."""
    if "--measure" in sys.argv:
        table, method, seed = sys.argv[-3:]
        print(json.dumps(measure(table, method, int(seed))))
        return
    jobs = {
        f"{table}-{method}-{seed}": partial(apart, table, method, seed)
        for table in TABLES
        for method in METHODS
        for seed in range(KEYS)
    }
    cells = cells_of(__doc__, "time", jobs)
    if cells:
        replace_block(PAGE, "time", write(cells))


if __name__ == "__main__":
    main()
