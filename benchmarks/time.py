"""How long does it take from samples to a posterior? Each run is a new process, timed from its start to the summary.

    python benchmarks/time.py                      # every cell; resumes
    python benchmarks/time.py --only 'moons-*'     # cells with these names: table-method-key, or demo
    python benchmarks/time.py --cached             # write only the tables, from the cells computed so far

Writes the tables in docs/time.md and the short one in README.md. A prior is learned from the rows of a table, a point is observed
with noise, and NUTS samples the posterior in two chains of 1,500 transitions each. For `g-and-k` the likelihood of one value is
learned from simulated pairs, and twenty values are observed. Run it on idle cores.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

STARTED = time.perf_counter()

import arviz as az  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import jax.random as jr  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
import numpyro  # noqa: E402
import numpyro.distributions as dist  # noqa: E402
from columns import TABLES as COLUMNS  # noqa: E402
from columns import Split, split  # noqa: E402
from likelihoods import PROBLEMS, Problem, model_of, simulate  # noqa: E402
from mixtures import Mixture  # noqa: E402
from numpyro.distributions import constraints  # noqa: E402
from numpyro.infer import MCMC, NUTS  # noqa: E402
from rivals import METHODS as RIVALS  # noqa: E402
from rivals import standardized  # noqa: E402
from sklearn.datasets import make_moons  # noqa: E402
from sklearn.mixture import GaussianMixture  # noqa: E402
from tables import cells_of, markdown, provenance, replace_block  # noqa: E402
from twisted import TwistedChain  # noqa: E402

import flowdensity as fd  # noqa: E402

COMPILATION = "/jax/core/compile/backend_compile_duration"
NOISE = 0.3
"""Standard deviation of the noise of the observed point, in standard deviations of each column."""
COMPONENTS = range(1, 21)
LIMIT = 180
"""Seconds after which a run of NUTS with another package's density is stopped. Then only the fit is timed."""
README, PAGE, PICTURE = Path("README.md"), Path("docs/time.md"), Path("docs/images/time.png")
README_METHODS = ("flow", "flow-cached", "mixture")
STAGES = ("import", "fit", "distill", "NUTS")


def moons() -> Split:
    """The example of the README."""
    (rows, _), (test, _) = (make_moons(n, noise=0.1, random_state=seed) for n, seed in ((5000, 0), (2000, 1)))
    return Split(rows, test)


def mixture(dim: int) -> Split:
    """A mixture of six Gaussians."""
    law = Mixture(dim, seed=0)
    return Split(law.sample(10_000, seed=1), law.sample(2_000, seed=2))


def chain(dim: int) -> Split:
    """A twisted chain, which no mixture of few Gaussians approximates well."""
    law = TwistedChain(dim)
    return Split(law.rows(10_000, seed=0), law.rows(2_000, seed=1))


LIKELIHOOD: Problem = PROBLEMS["g-and-k"]
OBSERVATIONS = 20
"""Number of observed values of the g-and-k distribution."""


def pairs() -> Split:
    """Values of a g-and-k distribution and the four parameters that they were simulated with, in five columns."""

    def drawn(count: int, seed: int) -> np.ndarray:
        parameters, values = simulate(LIKELIHOOD, jr.key(seed), count, 1)
        return np.column_stack([values[:, 0], *parameters.values()])

    return Split(drawn(10_000, 0), drawn(2_000, 1))


def parameters_of(rows: np.ndarray | jax.Array) -> dict[str, Any]:
    """The parameters in the columns behind the first."""
    return {name: rows[:, 1 + number] for number, name in enumerate(LIKELIHOOD.prior)}


TABLES: dict[str, Callable[[], Split]] = {
    "moons": moons,
    "cancer-30": partial(split, COLUMNS["cancer-30"], 0),
    "mixture-8": partial(mixture, 8),
    "mixture-32": partial(mixture, 32),
    "chain-8": partial(chain, 8),
    "chain-32": partial(chain, 32),
    "g-and-k": pairs,
}


class Stages:
    """Wall time of each stage, and the part of it that is compilation, in seconds."""

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
        """Time the body of the `with` statement."""
        started, before = time.perf_counter(), self._compiled
        yield
        self.seconds[name] = time.perf_counter() - started
        self.compiling[name] = self._compiled - before


class Learned(NamedTuple):
    """The density that a method learned, and the model in which NUTS uses it.

    Attributes:
        log_prob: log densities of rows, in nats.
        sampled: those of the density that NUTS samples; None if nothing is sampled.
        model: model for NUTS; None if nothing is sampled.
        observed: argument of the model.
        start: initial values of the two chains; None for numpyro's default.
    """

    log_prob: Callable[[jax.Array], jax.Array]
    sampled: Callable[[jax.Array], jax.Array] | None = None
    model: Callable[..., None] | None = None
    observed: np.ndarray | None = None
    start: dict[str, jax.Array] | None = None


def as_prior(log_prob: Callable[[jax.Array], jax.Array], prior: dist.Distribution, split: Split) -> Learned:
    """A density as the prior of the first held-out row, which is observed with noise."""
    noise = NOISE * split.train.std(axis=0)

    def model(y: np.ndarray) -> None:
        theta = numpyro.sample("theta", prior)
        numpyro.sample("y", dist.Normal(theta, noise).to_event(1), obs=y)

    # Start at the mean of the data, because some of these densities cannot be sampled directly.
    middle = jnp.broadcast_to(jnp.asarray(split.train.mean(axis=0), float), (2, split.train.shape[1]))
    return Learned(log_prob, prior.log_prob, model, split.test[0], {"theta": middle})


def learned(stages: Stages, key: jax.Array, split: Split) -> Learned:
    """A flow, and its distilled density for NUTS."""
    fit_key, distill_key = jr.split(key)
    with stages.stage("fit"):
        density, _ = fd.fit_flow(fit_key, split.train, progress=False)
    with stages.stage("distill"):
        fast, _ = fd.distill(distill_key, density, progress=False)
    return as_prior(density.log_prob, fast, split)


def learned_likelihood(stages: Stages, key: jax.Array, split: Split) -> Learned:
    """A conditional flow, and its distilled density as the likelihood of twenty values."""
    fit_key, distill_key = jr.split(key)
    with stages.stage("fit"):
        context = parameters_of(split.train)
        density, _ = fd.fit_flow(fit_key, split.train[:, 0], context=context, progress=False)
    with stages.stage("distill"):
        fast, _ = fd.distill(distill_key, density, progress=False)
    return as_likelihood(lambda x: density.given(parameters_of(x)).log_prob(x[:, 0]), fast.given)


def known_likelihood(stages: Stages, key: jax.Array, split: Split) -> Learned:
    """The known likelihood, by root finding."""
    del stages, key, split
    return as_likelihood(lambda x: LIKELIHOOD.known(parameters_of(x)).log_prob(x[:, 0]), LIKELIHOOD.known)


def as_likelihood(log_prob: Callable[[jax.Array], jax.Array], given: Callable[[Any], dist.Distribution]) -> Learned:
    """A conditional density as the likelihood of twenty values, of which the parameters are inferred."""
    _, values = simulate(LIKELIHOOD, jr.key(2), 1, OBSERVATIONS)
    return Learned(
        log_prob,
        lambda x: given(parameters_of(x)).log_prob(x[:, 0]),
        model_of(LIKELIHOOD, given, OBSERVATIONS),
        np.asarray(values[0]),
    )


def gaussians(stages: Stages, key: jax.Array, split: Split) -> Learned:
    """scikit-learn's mixture of Gaussians, with the number of components chosen by BIC."""
    seed = int(jr.randint(key, (), 0, 2**30))
    units, white = standardized(split.train)
    with stages.stage("fit"):
        fits = [GaussianMixture(number, random_state=seed).fit(white) for number in COMPONENTS]
        best = min(fits, key=lambda fit: fit.bic(white))
    means, factors = units.mean + units.sd * best.means_, units.sd[:, None] * np.linalg.cholesky(best.covariances_)
    density = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.asarray(best.weights_, float)),
        dist.MultivariateNormal(jnp.asarray(means, float), scale_tril=jnp.asarray(factors, float)),
    )
    return as_prior(density.log_prob, density, split)


class Unnormalized(dist.Distribution):
    """A distribution that has only a log density, for NUTS."""

    support = constraints.real_vector

    def __init__(self, log_prob: Callable[[jax.Array], jax.Array], dim: int):
        self._log_prob = log_prob
        super().__init__((), (dim,))

    def log_prob(self, value: jax.Array) -> jax.Array:
        """Log density in nats, of the batch shape of `value`."""
        return self._log_prob(value)


def flowjax(stages: Stages, key: jax.Array, split: Split) -> Learned:
    """flowjax's masked autoregressive flow with rational-quadratic splines and its default fit."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train import fit_to_data

    units, white = standardized(split.train)
    flow_key, fit_key = jr.split(key)
    with stages.stage("fit"):
        flow = masked_autoregressive_flow(
            flow_key,
            base_dist=Normal(jnp.zeros(white.shape[1])),
            transformer=RationalQuadraticSpline(knots=8, interval=4),
        )
        flow, _ = fit_to_data(fit_key, flow, jnp.asarray(white, float), show_progress=False)
    mean, sd = jnp.asarray(units.mean, float), jnp.asarray(units.sd, float)
    density = Unnormalized(lambda x: flow.log_prob((x - mean) / sd) - jnp.sum(jnp.log(sd)), white.shape[1])
    return as_prior(density.log_prob, density, split)


def scored(method: str, stages: Stages, key: jax.Array, split: Split) -> Learned:
    """A density without gradients in JAX, used for its score and the time of its fit only."""
    with stages.stage("fit"):
        fitted = RIVALS[method].fit(int(jr.randint(key, (), 0, 2**30)), split.train)
    return Learned(lambda x: fitted.log_prob(np.asarray(x, np.float64)))


METHODS: dict[str, Callable[..., Learned]] = {
    "flow": learned,
    "flow-cached": learned,
    "mixture": gaussians,
    "flowjax-maf": flowjax,
    "kde": partial(scored, "kde"),
    "vine": partial(scored, "vine"),
}
LIKELIHOODS: dict[str, Callable[..., Learned]] = {"flow": learned_likelihood, "known": known_likelihood}
"""Methods for the simulated pairs."""


def methods_of(table: str) -> dict[str, Callable[..., Learned]]:
    """The methods that can learn from a table."""
    return LIKELIHOODS if table == "g-and-k" else METHODS


CAPTION = (
    "`wall` is the time to the summary of the posterior, and `compilation` is a part of it. `CPU` is processor time, summed over "
    "the cores. `score` is the mean log density of held-out rows under the fitted density, in nats, and `score in NUTS` is the "
    "same under the density that NUTS uses, which for `flow` is the distilled one."
)
MEDIANS, ONE_RUN = (
    "Times are in seconds. Those of moons are medians over 3 random keys",
    ", the others are from one run",
)
NOT_SAMPLED = (
    "Kernel densities and vine copulas have no gradients in JAX, so NUTS is not run and `wall` is the time to the fit. A time "
    "with `>` means that NUTS was stopped after that time, and `wall` is then the time until the end of the fit."
)
CACHED = (
    "`flow-cached` loads the programs that an earlier process compiled, after "
    '`jax.config.update("jax_compilation_cache_dir", "jax-cache")`.'
)
LABELS = {
    "flow": "flowdensity, distilled",
    "mixture": "Gaussian mixture",
    "flowjax-maf": "flowjax MAF",
    "kde": "kernel density",
    "vine": "vine copula",
}
KEYS = {"moons": 3}
"""Number of keys of a table. The default is one."""


def measure(table: str, method: str, seed: int, sampled: bool) -> dict:
    """Time this process to the summary of the posterior, or to the fit if nothing is sampled, and score the held-out rows."""
    stages = Stages()
    stages.seconds["import"] = time.perf_counter() - STARTED
    rows = TABLES[table]()
    fitted = methods_of(table)[method](stages, jr.key(seed), rows)
    in_nuts = fitted.sampled if sampled else None
    result: dict[str, Any] = {}
    if in_nuts is not None:
        with stages.stage("NUTS"):
            mcmc = MCMC(
                NUTS(fitted.model),
                num_warmup=500,
                num_samples=1000,
                num_chains=2,
                chain_method="vectorized",
                progress_bar=False,
            )
            mcmc.run(jr.key(seed), fitted.observed, init_params=fitted.start)
            summary = az.summary(az.from_numpyro(mcmc, log_likelihood=False))
        result["ess"] = float(summary["ess_bulk"].astype(float).min())
    wall, used = time.perf_counter() - STARTED, resource.getrusage(resource.RUSAGE_SELF)

    def score(log_prob: Callable[[jax.Array], jax.Array]) -> float:
        parts = [np.asarray(log_prob(jnp.asarray(part, float)), np.float64) for part in np.array_split(rows.test, 4)]
        return float(np.mean(np.concatenate(parts)))

    result["score"] = score(fitted.log_prob)
    if in_nuts is not None:
        result["score in NUTS"] = score(in_nuts)
    return result | {
        "seconds": stages.seconds,
        "compiling": stages.compiling,
        "wall": wall,
        "CPU": used.ru_utime + used.ru_stime,
        "MB": used.ru_maxrss / 1024,
    }


def apart(table: str, method: str, seed: int) -> dict:
    """Measure in a new process. For `flow-cached`, a first process fills JAX's compilation cache and a second one is timed."""
    command = [sys.executable, __file__, "--measure", table, method, str(seed)]
    limit = LIMIT if method in ("mixture", "flowjax-maf") else None
    with tempfile.TemporaryDirectory() as folder:
        cache = {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}
        environment = os.environ | (cache if method == "flow-cached" else {})

        def run(*options: str, limit: float | None) -> dict:
            done = subprocess.run(
                [*command, *options], check=True, stdout=subprocess.PIPE, text=True, env=environment, timeout=limit
            )
            return json.loads(done.stdout.splitlines()[-1])

        if method == "flow-cached":
            run(limit=None)
        try:
            return run(limit=limit)
        except subprocess.TimeoutExpired:
            return run("--fit-only", limit=None) | {"stopped after": LIMIT}


def demo() -> dict:
    """Time `examples/quickstart.py` in a new process."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "examples/quickstart.py", "--quiet", "--output", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "wall": wall,
        "CPU": used.ru_utime - before.ru_utime + used.ru_stime - before.ru_stime,
    }


def found(cells: dict[str, dict], table: str, method: str) -> list[dict]:
    """The cells of a table and a method for all keys, or none if a key is missing."""
    names = [f"{table}-{method}-{seed}" for seed in range(KEYS.get(table, 1))]
    return [cells[name] for name in names if name in cells] if all(name in cells for name in names) else []


def write(cells: dict[str, dict], tables: Iterable[str], methods: Iterable[str]) -> str:
    """The table of medians over keys, for some tables and methods."""
    header = ["", *STAGES, "wall", "compilation", "CPU", "peak MB", "score", "score in NUTS"]
    lines = []
    for table in tables:
        for method in methods:
            several = found(cells, table, method)
            if not several:
                continue

            def middle(read: Callable[[dict], float], several: list[dict] = several) -> float:
                return median(read(each) for each in several)

            done = [
                f"{middle(lambda each, stage=stage: each['seconds'][stage]):.0f}"
                if stage in several[0]["seconds"]
                else ""
                for stage in STAGES
            ]
            compiling = middle(lambda each: sum(each["compiling"].values()))
            wall, cpu, memory = (middle(lambda each, name=name: each[name]) for name in ("wall", "CPU", "MB"))
            if "stopped after" in several[0]:
                done[-1] = f"> {several[0]['stopped after']}"
            score = f"{middle(lambda each: each['score']):.3f}"
            in_nuts = f"{middle(lambda each: each['score in NUTS']):.3f}" if "score in NUTS" in several[0] else ""
            whole = [f"{number:.0f}" for number in (wall, compiling, cpu, memory)]
            lines.append([f"{table}, {method}", *done, *whole, score, in_nuts])
    made = provenance("python benchmarks/time.py", cells.values())
    times_of_nuts = [line[1 + STAGES.index("NUTS")] for line in lines]
    several = any(KEYS.get(table, 1) == 1 for table in tables)
    notes = [f"{MEDIANS}{ONE_RUN if several else ''}.", CAPTION]
    if any(not seconds or seconds.startswith(">") for seconds in times_of_nuts):
        notes.append(NOT_SAMPLED)
    if any("flow-cached" in name for name in cells):
        notes.append(CACHED)
    return f"{markdown(header, lines)}\n\n{' '.join([*notes, made])}"


def draw(cells: dict[str, dict]) -> None:
    """Plot held-out scores against the time from the start to the summary of a posterior, with a panel per table of priors."""
    tables = [table for table in TABLES if methods_of(table) is METHODS and found(cells, table, "flow")]
    columns = min(3, len(tables))
    rows = -(-len(tables) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(8.0, 2.2 * rows + 0.4), squeeze=False)
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    for axis, table in zip(axes.flat, tables, strict=False):
        for color, (method, label) in enumerate(LABELS.items()):
            for cell in found(cells, table, method)[:1]:
                sampled = "score in NUTS" in cell
                axis.plot(
                    cell["wall"],
                    cell["score in NUTS"] if sampled else cell["score"],
                    "o",
                    color=f"C{color}",
                    fillstyle="full" if sampled else "none",
                    label=label,
                )
        axis.set(
            title=table, xscale="log", xlim=(2, 400), xlabel="seconds to a posterior", ylabel="held-out score, nats"
        )
        axis.set_xticks([3, 10, 30, 100, 300], ["3", "10", "30", "100", "300"], minor=False)
        axis.minorticks_off()
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(LABELS))
    figure.savefig(PICTURE)


def main() -> None:
    """Measure the missing cells and write the tables."""
    if "--measure" in sys.argv:
        table, method, seed, *options = sys.argv[sys.argv.index("--measure") + 1 :]
        print(json.dumps(measure(table, method, int(seed), "--fit-only" not in options)))
        return
    jobs = {
        f"{table}-{method}-{seed}": partial(apart, table, method, seed)
        for table in TABLES
        for method in methods_of(table)
        for seed in range(KEYS.get(table, 1))
        if method != "flow-cached" or table == "moons"
    }
    cells = cells_of(__doc__, "time", jobs | {"demo": demo})
    ran = cells.pop("demo", None)
    if cells:
        replace_block(README, "time", write(cells, ["moons"], README_METHODS))
        replace_block(PAGE, "time", write(cells, TABLES, METHODS | LIKELIHOODS))
        if ran:
            replace_block(
                PAGE,
                "demo",
                f"`make demo` (`examples/quickstart.py`) takes {ran['wall']:.0f} s and {ran['CPU']:.0f} CPU "
                "seconds on the same machine, without the installation.",
            )
        draw(cells)


if __name__ == "__main__":
    main()
