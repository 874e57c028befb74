"""How good is the density on held-out rows? Real and synthetic tables, beside other packages, defaults only.

    python benchmarks/peers.py                          # every cell: about six core hours; resumes
    python benchmarks/peers.py --only 'iris-*' '*-0'    # the cells of these names: table-method-split, or table-method-nuts
    python benchmarks/peers.py --quick                  # three tables, one split, the quick methods
    python benchmarks/peers.py --cached                 # only the page, from the cells that are there

Writes docs/density.md and docs/images/peers.png once every cell has been computed. The fitted densities are kept in
benchmarks/.fits/peers until they are deleted, because NUTS samples those of the first split.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import numpy as np
import numpyro
import schools
from accuracy import log_prob
from chains import run_nuts
from columns import TABLES, split
from fits import KEPT
from numpyro.distributions import constraints
from peers_page import SCHOOLS, Name, draw, text
from rivals import METHODS, Fitted, LogProb
from tables import cells_of, replace_block

import flowdensity as fd

SCORED, TIMED = 2_000, 1_000
PAGE = Path("docs/density.md")
POSTERIORS = {"schools-centered": schools.centered, "schools-non-centered": schools.non_centered}
"""What the draws of a table are of: its own necks are no fault of what is learned."""
BY_COLUMNS = {
    "schools-centered": schools.by_columns(schools.centered, "theta"),
    "schools-non-centered": schools.by_columns(schools.non_centered, "noise"),
}
"""The same as densities of the table's columns, as a flow learns them."""
QUICK = (("iris", "wine", "schools-non-centered"), ("gaussian", "kde", "mixture", "flowjax-maf", "zuko-nsf", "flow"))


def warm(call: Callable[[], object]) -> float:
    """Seconds that the second call takes."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def mean_score(score: LogProb, rows: np.ndarray) -> float:
    """Mean log score of at most 2,000 rows."""
    return float(np.mean(score(rows[:SCORED])))


def kept(name: Name) -> Path:
    """Where the density that a cell has fitted is kept for NUTS."""
    return KEPT / "peers" / f"{name}.flowdensity"


def fit(name: Name, train: np.ndarray) -> Fitted:
    """What the method of a cell learns from the rows of its split."""
    fitted = METHODS[name.method].fit(name.seed, train)
    if fitted.density is not None:
        kept(name).parent.mkdir(parents=True, exist_ok=True)
        fd.save(kept(name), fitted.density)
    return fitted


def measure(name: Name) -> dict:
    """Fit one method to one split, and score the rest."""
    train, test = split(TABLES[name.table], name.seed)
    started = time.perf_counter()
    fitted = fit(name, train)
    result: dict = {"seconds to fit": time.perf_counter() - started}
    held_out = np.asarray(fitted.log_prob(test[:SCORED]), np.float64)
    timed = np.resize(test, (TIMED, test.shape[1]))
    result |= {
        "score": float(held_out.mean()),
        "error": float(held_out.std(ddof=1) / np.sqrt(len(held_out))),
        "training score": mean_score(fitted.log_prob, train),
        "seconds of 1,000 log_prob": warm(lambda: fitted.log_prob(timed)),
        "seconds of 1,000 samples": warm(lambda: fitted.sample(TIMED)),
        "rows": [round(float(value), 4) for value in held_out],
    }
    if fitted.density is not None:
        exact = partial(log_prob, fitted.density.with_divergence(fd.ExactDivergence()))
        result["exact"] = mean_score(exact, test)
    made = {"package": METHODS[name.method].made_with, "cores": len(os.sched_getaffinity(0))}
    return result | made | {"training rows": len(train)}


def sampled(name: Name) -> dict:
    """NUTS on the density of a cell alone."""
    file = kept(name)
    density = fd.load(file) if file.exists() else fit(name, split(TABLES[name.table], name.seed).train).density
    return chains_of(lambda: numpyro.sample("theta", density))


def chains_of(model: Callable[[], object]) -> dict:
    """Share of divergent transitions of NUTS by numpyro's defaults: four chains, 500 draws each."""
    draws, run = run_nuts(model, warmup=500, samples=500)
    return run | {"divergent": run["divergences"] / (draws.shape[0] * draws.shape[1])}


def told(table: str) -> dict:
    """NUTS on a density that is learned from draws of the eight schools with their support: the last column is positive."""
    support = [constraints.real] * (TABLES[table].dim - 1) + [constraints.positive]
    train = split(TABLES[table], 0).train
    density, _ = fd.fit_flow(jax.random.key(0), train, support=support, progress=False)
    return chains_of(lambda: numpyro.sample("theta", density))


def names() -> list[Name]:
    """Every table, method and split."""
    return [
        Name(table.name, label, seed)
        for table in TABLES.values()
        for label, method in METHODS.items()
        if method.suits(table)
        for seed in range(table.splits)
    ]


def jobs() -> dict[str, Callable[[], dict]]:
    """Every cell by name."""
    return (
        {str(n): partial(measure, n) for n in names()}
        | {n.chains: partial(sampled, n) for n in names() if n.is_sampled}
        | {f"{table}-posterior-nuts": partial(chains_of, model) for table, model in POSTERIORS.items()}
        | {f"{table}-columns-nuts": partial(chains_of, model) for table, model in BY_COLUMNS.items()}
        | {f"{table}-support-nuts": partial(told, table) for table in POSTERIORS}
    )


def main() -> None:
    """Compute the cells that are missing and, if none is missing any more, write the page."""
    every = jobs()
    found = cells_of(__doc__, "peers", every, [str(Name(t, m, 0)) for t in QUICK[0] for m in QUICK[1]])
    if missing := [name for name in every if name not in found]:
        print(f"{len(missing)} of {len(every)} cells are missing, so the page is not written: {', '.join(missing)}")
        return
    cells = {n: found[str(n)] for n in names()}
    chains = {n: found[n.chains] for n in cells if n.is_sampled}
    schools_chains = {
        kind: {table: found[f"{table}-{kind}-nuts"]["divergent"] for table in POSTERIORS} for kind in SCHOOLS
    }
    page = text(cells, chains, schools_chains)
    print(page)
    draw(cells)
    replace_block(PAGE, "peers", page)


if __name__ == "__main__":
    main()
