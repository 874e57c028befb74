"""How does the held-out log score change if one default of `fit_flow` is changed?

    python benchmarks/choices.py                     # all cells; resumes
    python benchmarks/choices.py --only 'wine-*'     # only some of them
    python benchmarks/choices.py --cached            # write only the table, from the cells computed so far

Writes docs/choices.md. Only the flow is fitted. It is scored with the exact divergence, which a distilled one approximates.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.random as jr
import numpy as np
from accuracy import log_prob
from columns import DRAWN, DRAWN_HELD_OUT, OTHERS, TABLES, Columns, Split, split
from tables import cells_of, markdown, provenance, replace_block
from twisted import TwistedChain

import flowdensity as fd
from flowdensity.data.transforms.candidates import COORDINATEWISE
from flowdensity.training.prepare import FOURIER_FEATURES, default_network
from flowdensity.training.training import FEW_DIMENSIONS, FEW_ROWS
from flowdensity.training.velocity import default_plan

PAGE = Path("docs/choices.md")
CANDIDATES = "flowdensity.data.transforms.candidates"
"""Module with constants that some choices patch."""
SCORED = 2_000
SEED = 0
"""Seed of the split."""
REAL = ("iris", "wine", "diabetes", "cancer-10", "cancer-30")
EDGED = ("digits-64",)
"""Tables with edges and spikes in their columns."""
LONG = ("student-10", "funnel")
"""Tables with tails that are long in all directions at once."""
NECKED = ("schools-centered",)
"""Tables where radial Gaussianization raises the likelihood under one Gaussian, but not under a mixture."""
FLAT = ("moons", "checkerboard")
DEEP = ("funnel", "chain-8")
SYNTHETIC = FLAT + DEEP
ALL = REAL + NECKED + EDGED + ("student-10",) + SYNTHETIC
STUDENTS, DEGREES = 2_500, 3.0


def students(seed: int) -> Split:
    """Rows of Student's t distribution in ten dimensions, with three degrees of freedom."""
    root = np.random.default_rng(7).normal(size=(10, 10)) + 2.0 * np.eye(10)
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return rng.normal(size=(count, 10)) @ root.T / np.sqrt(rng.chisquare(DEGREES, size=(count, 1)) / DEGREES)

    return Split(draw(STUDENTS), draw(DRAWN_HELD_OUT))


def chain(seed: int) -> Split:
    """Rows of a twisted chain in eight dimensions."""
    law = TwistedChain(8)
    return Split(law.rows(DRAWN, 2 * seed), law.rows(DRAWN_HELD_OUT, 2 * seed + 1))


STUDENT = Columns("student-10", STUDENTS + DRAWN_HELD_OUT, 10, 1, students, overlap=0.0)
CHAIN = Columns("chain-8", DRAWN + DRAWN_HELD_OUT, 8, 1, chain, overlap=0.0)
ROWS = TABLES | OTHERS | {STUDENT.name: STUDENT, CHAIN.name: CHAIN}


def likely_share_of(share: float) -> dict[str, Any]:
    """Patch the share of angles that are drawn with the weights of the likelihood."""
    return {"flowdensity.training.velocity.likely_share": lambda small, dim: share}


def nothing(*args: object, **kwargs: object) -> None:
    """Replace a function of the package, and return None."""


def always(gain: tuple[float, float]) -> bool:
    """Replace the comparisons with a reference, so that a trained flow is always returned."""
    return True


class Choice(NamedTuple):
    """A change of the default fit.

    Attributes:
        options: options of `fit_flow`, given the training rows.
        patched: names in the package and the values that replace them.
        tables: tables on which the choice differs from the default.
        key: seed of the fit.
    """

    options: Callable[[np.ndarray], dict[str, Any]] = lambda train: {}
    patched: Mapping[str, Any] = MappingProxyType({})
    tables: Sequence[str] = REAL + SYNTHETIC
    key: int = 0

    def fit(self, train: np.ndarray) -> tuple[fd.FlowDensity, fd.results.FitReport]:
        """Fit the density of a table, with its exact divergence."""
        options = {"divergence": fd.ExactDivergence(), "progress": False} | self.options(train)
        with ExitStack() as stack:
            for name, instead in self.patched.items():
                stack.enter_context(patch(name, instead))
            # Functions compiled before the patch must not be reused, nor those compiled under it by the next cell.
            jax.clear_caches()
            stack.callback(jax.clear_caches)
            return fd.fit_flow(jr.key(self.key), train, **options)


def experts(train: np.ndarray) -> dict[str, Any]:
    """The default network with sixteen experts in place of none, and none in place of sixteen."""
    return {"network": default_network(jr.key(7), *train.shape, experts=16 if len(train) < FEW_ROWS else 0)}


def other_width(train: np.ndarray) -> dict[str, Any]:
    """The default network with 128 units below 2,000 rows, and 64 otherwise."""
    return {"network": default_network(jr.key(7), *train.shape, width=128 if len(train) < FEW_ROWS else 64)}


def other_features(train: np.ndarray) -> dict[str, Any]:
    """The default network without Fourier features in up to three dimensions, and with them in more."""
    features = 0 if train.shape[1] <= FEW_DIMENSIONS else FOURIER_FEATURES
    return {"network": default_network(jr.key(7), *train.shape, fourier_features=features)}


def other_rate(train: np.ndarray) -> dict[str, Any]:
    """Half the default learning rate in up to three dimensions, and twice the default in more."""
    rate = default_plan(fd.Training(), *train.shape).learning_rate
    return {"training": fd.Training(learning_rate=rate * (0.5 if train.shape[1] <= FEW_DIMENSIONS else 2.0))}


CHOICES: Mapping[str, Choice] = {
    "default": Choice(tables=ALL),
    "another key": Choice(key=1),
    "no mixture as the reference": Choice(patched={"flowdensity.training.departure.choose_reference": nothing}),
    "always trained from the mixture": Choice(patched={"flowdensity.training.departure.is_clear": always}),
    "no marginal Gaussianization": Choice(patched={f"{CANDIDATES}.COORDINATEWISE": COORDINATEWISE[:1]}, tables=EDGED),
    "no radial Gaussianization": Choice(patched={f"{CANDIDATES}.RADIAL": ()}, tables=LONG),
    "one Gaussian decides on the radius": Choice(patched={f"{CANDIDATES}.MIN_STANDARD_ERRORS": -np.inf}, tables=NECKED),
    "no Johnson SU": Choice(patched={f"{CANDIDATES}.COORDINATEWISE": COORDINATEWISE[1:]}, tables=REAL),
    "the other width": Choice(other_width),
    "experts the other way round": Choice(experts),
    "Fourier features the other way round": Choice(other_features, tables=SYNTHETIC),
    "the other learning rate": Choice(other_rate, tables=SYNTHETIC),
    "Trigonometric": Choice(lambda train: {"path": fd.paths.Trigonometric()}),
    "VariancePreserving": Choice(lambda train: {"path": fd.paths.VariancePreserving()}),
    "no angles for the likelihood": Choice(patched=likely_share_of(0.0), tables=REAL + FLAT),
    "half the angles for the likelihood": Choice(patched=likely_share_of(0.5), tables=DEEP),
    "all angles for the likelihood": Choice(patched=likely_share_of(1.0)),
}
PATHS = ("default", "Trigonometric", "VariancePreserving")


def measure(table: str, choice: str) -> dict:
    """Fit the training rows of one split and score the held-out rows."""
    train, test = split(ROWS[table], SEED)
    started = time.perf_counter()
    density, report = CHOICES[choice].fit(train)
    (history,) = report.histories.values()
    held_out = log_prob(density, test[:SCORED])
    return {
        "score": float(held_out.mean()),
        "training score": float(log_prob(density, train[:SCORED]).mean()),
        "best step": history.best_step,
        "solver steps": density.solver.steps,
        "seconds to fit": time.perf_counter() - started,
        "rows": [round(float(value), 4) for value in held_out],
    }


Cells = Mapping[tuple[str, str], dict]


def score(cells: Cells, table: str, choice: str) -> str:
    """The score of the default, or the difference of another choice from it with the paired standard error over rows."""
    if (table, choice) not in cells or (table, "default") not in cells:
        return ""
    if choice == "default":
        return f"{cells[table, choice]['score']:.3f}"
    gap = np.asarray(cells[table, choice]["rows"]) - np.asarray(cells[table, "default"]["rows"])
    return f"{gap.mean():+.3f} +- {gap.std(ddof=1) / np.sqrt(len(gap)):.3f}"


def solver_steps(cells: Cells, table: str, choice: str) -> str:
    """Number of solver steps that the fit chose."""
    return str(cells[table, choice]["solver steps"]) if (table, choice) in cells else ""


def text_of(cells: Cells) -> str:
    """The tables of the page."""

    def table(entry: Callable[[Cells, str, str], str], tables: Sequence[str], rows: Iterable[str]) -> str:
        columns = [t for t in tables if (t, "default") in cells]
        shown = [r for r in rows if any((column, r) in cells for column in columns)]
        return markdown(["", *columns], [[row, *(entry(cells, column, row) for column in columns)] for row in shown])

    return "\n\n".join(
        [
            *(table(score, [t for t in ALL if ROWS[t].real is real], CHOICES) for real in (True, False)),
            "The number of solver steps that the fit chose: the smallest number tried for which doubling the steps changes "
            "`log_prob` by at most 0.01 nats (root mean square):",
            table(solver_steps, REAL + SYNTHETIC, PATHS),
        ]
    )


def main() -> None:
    """Compute the cells that are missing and write the tables."""
    names = {f"{table}-{choice}": (table, choice) for choice in CHOICES for table in CHOICES[choice].tables}
    found = cells_of(__doc__, "choices", {name: partial(measure, *which) for name, which in names.items()})
    if not found:
        print("no cells yet")
        return
    cells = {names[name]: value for name, value in found.items()}
    partly = f"**Partial: {len(cells)} of {len(names)} cells.**\n\n" if len(cells) < len(names) else ""
    text = f"{partly}{text_of(cells)}\n\n{provenance('python benchmarks/choices.py', cells.values())}"
    print(text)
    replace_block(PAGE, "choices", text)


if __name__ == "__main__":
    main()
