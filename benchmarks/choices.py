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
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from accuracy import log_prob
from columns import DRAWN_HELD_OUT, OTHERS, TABLES, Columns, Split, split
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd
from flowdensity.data.tables import Sample
from flowdensity.data.transforms.candidates import COORDINATEWISE
from flowdensity.training.loop import Schedule
from flowdensity.training.losses import MatchingDraws, draw_matching
from flowdensity.training.prepare import FOURIER_FEATURES, default_network
from flowdensity.training.training import FEW_DIMENSIONS, FEW_ROWS
from flowdensity.training.velocity import default_plan

PAGE = Path("docs/choices.md")
CANDIDATES = "flowdensity.data.transforms.candidates"
"""Module with constants that some choices patch."""
SCORED = 2_000
PILOT, ANGLES = 1_000, 201
"""Steps of the short fit that estimates the kinetic energy of each angle, and number of angles."""
SEED = 0
"""Seed of the split."""
FLOOR = 0.05
"""Standard deviation of the noise added to whitened rows."""
REAL = ("iris", "wine", "diabetes", "cancer-10", "cancer-30", "digits-16")
EDGED = ("digits-64",)
"""Tables with edges and spikes in their columns."""
LONG = ("patches", "student-10")
"""Tables with tails that are long in all directions at once, like those of the funnel."""
NECKED = ("schools-centered",)
"""Tables where radial Gaussianization raises the likelihood under one Gaussian, but not under a mixture."""
FLAT = ("moons", "checkerboard")
DEEP = ("funnel", "mixture-8", "mixture-32")
SYNTHETIC = FLAT + DEEP
ALL = REAL + NECKED + EDGED + LONG + SYNTHETIC
STUDENTS, DEGREES = 2_500, 3.0


def students(seed: int) -> Split:
    """Rows of Student's t distribution in ten dimensions, with three degrees of freedom."""
    root = np.random.default_rng(7).normal(size=(10, 10)) + 2.0 * np.eye(10)
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return rng.normal(size=(count, 10)) @ root.T / np.sqrt(rng.chisquare(DEGREES, size=(count, 1)) / DEGREES)

    return Split(draw(STUDENTS), draw(DRAWN_HELD_OUT))


STUDENT = Columns("student-10", STUDENTS + DRAWN_HELD_OUT, 10, 1, students, overlap=0.0)
ROWS = TABLES | OTHERS | {STUDENT.name: STUDENT}


class KineticOptimal(fd.paths.AbstractPath):
    r"""The schedule of least kinetic energy for a given flow in the angle (Shaul et al. 2023, arXiv 2306.06626).

    Let $S(\phi)^2 = \mathbb{E}|F|^2/D$. The energy of $x_t = r(t)\,y_{\phi(t)}$ is $\int r'^2 + r^2 S^2\phi'^2\,dt$. This is
    the energy of a plane curve with the polar coordinates $r$ and $\Theta = \int S\,d\phi$, and it is least along the chord.
    With $S = 1$ the schedule is `CondOT`. As $S \to 0$ it tends to `Trigonometric` in the stretched angle.

    Args:
        times: path times, increasing from 0 to 1.
        angles: angles at these times.
    """

    times: jax.Array
    angles: jax.Array

    def coefficients(self, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        angle = self.angle(t)
        return jnp.sin(angle), jnp.cos(angle)

    def angle(self, t: jax.Array) -> jax.Array:
        return jnp.interp(t, self.times, self.angles)


def kinetic_optimal(train: np.ndarray) -> KineticOptimal:
    """The kinetic optimal schedule of the flow that a short fit learns."""
    density, _ = fd.fit_flow(
        jr.key(11), train, training=fd.Training(steps=PILOT), divergence=fd.ExactDivergence(), progress=False
    )
    model = density.model
    rows = jnp.asarray(train[:SCORED], float)
    white = jax.vmap(lambda row: model.scaling.whiten(row)[0])(rows)
    noise = jr.normal(jr.key(12), white.shape)

    @jax.jit
    def speed(angle: jax.Array) -> jax.Array:
        states = jnp.sin(angle) * white + jnp.cos(angle) * noise
        fields = jax.vmap(lambda state: model.velocity(angle, state, jnp.zeros(0)))(states)
        return jnp.sqrt(jnp.mean(jnp.square(fields)))

    angles = np.linspace(0.0, 0.5 * np.pi, ANGLES)
    speeds = np.asarray([speed(jnp.asarray(angle)) for angle in angles], np.float64)
    stretched = np.insert(np.cumsum(0.5 * np.diff(angles) * (speeds[1:] + speeds[:-1])), 0, 0.0)
    # Time along the chord between two points of the unit circle, separated by the total stretched angle.
    half = 0.5 * stretched[-1]
    times = 0.5 * (1.0 + np.tan(stretched - half) / np.tan(half))
    return KineticOptimal(jnp.asarray(times, float), jnp.asarray(angles, float))


def decay_of(decay: float) -> dict[str, Any]:
    """Patch the weight decay in the training schedule of the velocity."""
    return {"flowdensity.training.velocity.Schedule": partial(Schedule, weight_decay=decay)}


def likely_share_of(share: float) -> dict[str, Any]:
    """Patch the share of angles that are drawn with the weights of the likelihood."""
    return {"flowdensity.training.velocity.likely_share": lambda small, dim: share}


def nothing(*args: object, **kwargs: object) -> None:
    """Replace a function of the package, and return None."""


def always(gain: tuple[float, float]) -> bool:
    """Replace the comparison of the mixture with the flow from one Gaussian."""
    return True


def draw_noisy(key: jax.Array, sample: Sample, *args: Any) -> MatchingDraws:
    """Draws for the matching loss from rows with fresh noise, which smooths the learned density."""
    draw_key, noise_key = jr.split(key)
    noise = FLOOR * jr.normal(noise_key, sample.states.shape)
    return draw_matching(draw_key, sample._replace(states=sample.states + noise), *args)


def tuned(density: fd.FlowDensity, train: np.ndarray) -> fd.FlowDensity:
    """The density after a short run of maximum likelihood."""
    exact = fd.ExactDivergence()
    return fd.fit_likelihood(jr.key(13), train, model=density.model, divergence=exact, progress=False)[0]


class Choice(NamedTuple):
    """A change of the default fit.

    Attributes:
        options: options of `fit_flow`, given the training rows.
        patched: names in the package and the values that replace them.
        after: function applied to the fitted density.
        tables: tables on which the choice differs from the default.
        key: seed of the fit.
    """

    options: Callable[[np.ndarray], dict[str, Any]] = lambda train: {}
    patched: Mapping[str, Any] = MappingProxyType({})
    after: Callable[[fd.FlowDensity, np.ndarray], fd.FlowDensity] = lambda density, train: density
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
            density, report = fd.fit_flow(jr.key(self.key), train, **options)
        return self.after(density, train), report


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
    "no mixture as the reference": Choice(
        patched={"flowdensity.training.departure.choose_reference": nothing}, tables=REAL
    ),
    "always from the mixture": Choice(patched={"flowdensity.training.departure.is_clear": always}, tables=REAL),
    "no marginal Gaussianization": Choice(patched={f"{CANDIDATES}.COORDINATEWISE": COORDINATEWISE[:1]}, tables=EDGED),
    "no radial Gaussianization": Choice(patched={f"{CANDIDATES}.RADIAL": ()}, tables=(*LONG, "funnel")),
    "one Gaussian decides on the radius": Choice(patched={f"{CANDIDATES}.MIN_STANDARD_ERRORS": -np.inf}, tables=NECKED),
    "no Johnson SU": Choice(patched={f"{CANDIDATES}.COORDINATEWISE": COORDINATEWISE[1:]}),
    "the other width": Choice(other_width),
    "experts the other way round": Choice(experts),
    "Fourier features the other way round": Choice(other_features, tables=SYNTHETIC),
    "weight decay of 0.01": Choice(patched=decay_of(0.01)),
    "noise floor of 0.05": Choice(patched={"flowdensity.training.folds.draw_matching": draw_noisy}),
    "the other learning rate": Choice(other_rate, tables=SYNTHETIC),
    "Trigonometric": Choice(lambda train: {"path": fd.paths.Trigonometric()}),
    "VariancePreserving": Choice(lambda train: {"path": fd.paths.VariancePreserving()}),
    "kinetic optimal": Choice(lambda train: {"path": kinetic_optimal(train)}),
    "no angles for the likelihood": Choice(patched=likely_share_of(0.0), tables=REAL + FLAT),
    "half the angles for the likelihood": Choice(patched=likely_share_of(0.5), tables=DEEP),
    "all angles for the likelihood": Choice(patched=likely_share_of(1.0)),
    "tuned on the likelihood": Choice(after=tuned),
}
PATHS = ("default", "Trigonometric", "VariancePreserving", "kinetic optimal")


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
            "The number of solver steps that the fit chose, which is the smallest that keeps `log_prob` within 0.01 nats:",
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
