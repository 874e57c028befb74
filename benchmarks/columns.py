"""The tables of the benchmark of held-out log scores: real columns and synthetic ones, and how they are split.

Every method gets the same columns, and a score is the log density of the columns as they are here, in nats a row.

- **Rounded columns.** iris, wine and diabetes are recorded to a tenth, a hundredth or a whole unit, with many ties: each of their
  columns has uniform noise of the width of its rounding added. So have the grey levels of digits and photographs. The noise is
  that of the split's seed. Breast cancer has four or five digits and is left as it is.
- **Left out.** Of diabetes the sex, which has two values. Of breast cancer the 13 tumours without any concavity: that 0 is an
  atom, and the narrower the spike that a method puts there, the higher its score. Of the posteriors what is a function of the
  rest (theta of the non-centered one) and draws that repeat the one before, where the sampler stayed.
- **Splits.** A fifth of the rows is held out; of a posterior whole stretches of 50 draws, since neighbors are alike; of the
  photographs a quarter of their columns. Synthetic tables are drawn anew for every split: 10,000 rows and 2,000 held out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import arviz as az
import numpy as np
from mixtures import Mixture
from sklearn import datasets
from sklearn.decomposition import PCA

HELD_OUT = 0.2
DRAWN, DRAWN_HELD_OUT = 10_000, 2_000
STRETCH = 50
PATCH, PATCHES, PATCHES_HELD_OUT = 8, 100_000, 2_000
WINE = (0.01, 0.01, 0.01, 0.1, 1.0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 1.0)
DIABETES = (1.0, 0.1, 1.0, 1.0, 0.1, 1.0, 1.0, 0.01, 1.0, 1.0)
"""Of age, bmi, bp, s1 to s6 and the target: bp and s4 are whole numbers in nine rows of ten, and s5 is a logarithm."""
CONCAVITY = 6
"""The column of breast cancer with the mean concavity."""


class Split(NamedTuple):
    """Rows to learn from and rows to score, each of shape `(rows, dim)`, float64."""

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Columns:
    """A table.

    Attributes:
        name: what its cells are called.
        rows: how many it has, held-out ones included.
        dim: columns.
        splits: how often it is split, with the seeds 0, 1, ...
        make: the split of a seed.
        overlap: rows held out for each row to learn from, where splits share rows; 0 where each has fresh ones.
    """

    name: str
    rows: int
    dim: int
    splits: int
    make: Callable[[int], Split]
    overlap: float = HELD_OUT / (1.0 - HELD_OUT)

    @property
    def real(self) -> bool:
        """Whether it was observed, and not drawn for the benchmark."""
        return self.overlap > 0.0


def split(table: Columns, seed: int) -> Split:
    """The rows to learn from and to score of a seed: the same at every call."""
    train, test = (np.asarray(rows, np.float64) for rows in table.make(seed))
    assert train.shape[1] == test.shape[1] == table.dim
    return Split(train, test)


def parted(rows: np.ndarray, rng: np.random.Generator) -> Split:
    """A fifth of the rows held out, both parts in random order."""
    rows = rng.permutation(rows)
    held_out = round(HELD_OUT * len(rows))
    return Split(rows[held_out:], rows[:held_out])


def spread(rows: np.ndarray, unit: float | tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Rounded columns with uniform noise of the width of their rounding around what was recorded."""
    return rows + (rng.random(rows.shape) - 0.5) * np.asarray(unit)


def iris(seed: int) -> Split:
    """Lengths and widths of sepals and petals in cm, to a tenth."""
    rng = np.random.default_rng(seed)
    return parted(spread(datasets.load_iris().data, 0.1, rng), rng)


def wine(seed: int) -> Split:
    """A chemical analysis of 178 wines."""
    rng = np.random.default_rng(seed)
    return parted(spread(datasets.load_wine().data, WINE, rng), rng)


def diabetes(seed: int) -> Split:
    """Nine measurements of 442 patients, and the progression of their disease; without the sex."""
    rng = np.random.default_rng(seed)
    table = datasets.load_diabetes(scaled=False)
    rows = np.column_stack([np.delete(table.data, table.feature_names.index("sex"), axis=1), table.target])
    return parted(spread(rows, DIABETES, rng), rng)


def cancer(columns: int, seed: int) -> Split:
    """The first so many columns of breast cancer: the ten means, or these with their errors and worst values."""
    rows = datasets.load_breast_cancer().data
    return parted(rows[rows[:, CONCAVITY] > 0.0, :columns], np.random.default_rng(seed))


def digits(seed: int) -> Split:
    """All 64 pixels of scikit-learn's digits, whole numbers from 0 to 16 spread to [0, 17)."""
    rng = np.random.default_rng(seed)
    return parted(spread(datasets.load_digits().data + 0.5, 1.0, rng), rng)


def components(seed: int) -> Split:
    """The digits' first 16 principal components, those of the rows to learn from."""
    train, test = digits(seed)
    projection = PCA(16, random_state=seed).fit(train)
    return Split(projection.transform(train), projection.transform(test))


def patches(seed: int) -> Split:
    """8 x 8 patches of two grey photographs less their mean and without the last pixel, which the others then determine.

    Held-out patches are cut from one quarter of each photograph's columns, and those to learn from from the others.
    """
    rng = np.random.default_rng(seed)
    photographs = [p.mean(axis=2).round() for p in datasets.load_sample_images().images]
    quarters = np.linspace(0, photographs[0].shape[1], 5).astype(int)
    held_out = 3 - seed % 4

    def cut(count: int, which: list[int]) -> np.ndarray:
        found = []
        for number in range(count):
            photograph = photographs[number % len(photographs)]
            quarter = which[rng.integers(len(which))]
            top = rng.integers(photograph.shape[0] - PATCH + 1)
            left = rng.integers(quarters[quarter], quarters[quarter + 1] - PATCH + 1)
            found.append(photograph[top : top + PATCH, left : left + PATCH].ravel())
        rows = spread(rng.permutation(np.stack(found)) + 0.5, 1.0, rng)
        return (rows - rows.mean(axis=1, keepdims=True))[:, :-1]

    return Split(cut(PATCHES, [q for q in range(4) if q != held_out]), cut(PATCHES_HELD_OUT, [held_out]))


def schools(name: str, variables: tuple[str, ...], seed: int) -> Split:
    """Draws of the eight schools that come with arviz, without those that repeat the one before."""
    posterior = az.load_arviz_data(name)["posterior"]
    values = [posterior[v].values for v in variables]
    rows = np.concatenate([v.reshape(*v.shape[:2], -1) for v in values], axis=-1)
    moved = np.concatenate([chain[np.insert(np.any(np.diff(chain, axis=0), axis=1), 0, True)] for chain in rows])
    rng = np.random.default_rng(seed)
    stretches = rng.permutation(-(-len(moved) // STRETCH))
    number = np.arange(len(moved)) // STRETCH
    out = np.isin(number, stretches[: round(HELD_OUT * len(stretches))])
    return Split(rng.permutation(moved[~out]), rng.permutation(moved[out]))


def drawn(draw: Callable[[np.random.Generator, int], np.ndarray], seed: int) -> Split:
    """Fresh rows to learn from and to score."""
    rows = draw(np.random.default_rng(seed), DRAWN + DRAWN_HELD_OUT)
    return Split(rows[:DRAWN], rows[DRAWN:])


def moons(rng: np.random.Generator, count: int) -> np.ndarray:
    """scikit-learn's two half-circles, with noise of 0.1."""
    return datasets.make_moons(count, noise=0.1, random_state=int(rng.integers(2**31)))[0]


def rings(rng: np.random.Generator, count: int) -> np.ndarray:
    """Two circles of radii 1/2 and 1, with noise of 0.05."""
    return datasets.make_circles(count, noise=0.05, factor=0.5, random_state=int(rng.integers(2**31)))[0]


def checkerboard(rng: np.random.Generator, count: int) -> np.ndarray:
    """Uniform on the eight black squares of a board of four by four, of side 1."""
    column, row = rng.integers(4, size=count), 2 * rng.integers(2, size=count)
    return np.stack([column, row + column % 2], axis=1) - 2.0 + rng.random((count, 2))


def funnel(rng: np.random.Generator, count: int) -> np.ndarray:
    """Neal's funnel in ten dimensions: v ~ N(0, 3^2) and nine x ~ N(0, exp(v))."""
    v = 3.0 * rng.normal(size=(count, 1))
    return np.concatenate([v, np.exp(v / 2.0) * rng.normal(size=(count, 9))], axis=1)


def banana(rng: np.random.Generator, count: int) -> np.ndarray:
    """A bent Gaussian: x ~ N(0, 2^2) and y ~ N(x^2 / 4, 1/4)."""
    x = 2.0 * rng.normal(size=count)
    return np.stack([x, x**2 / 4.0 + 0.5 * rng.normal(size=count)], axis=1)


def six_modes(dim: int, seed: int) -> Split:
    """One mixture of six Gaussians in each dimension, and fresh draws of it for every seed."""
    mixture = Mixture(dim, 0)
    return Split(mixture.sample(DRAWN, 1000 + seed), mixture.sample(DRAWN_HELD_OUT, 2000 + seed))


CENTRED = ("mu", "theta", "tau")
NON_CENTRED = ("mu", "theta_t", "tau")

TABLES: dict[str, Columns] = {
    table.name: table
    for table in (
        Columns("iris", 150, 4, 5, iris),
        Columns("wine", 178, 13, 5, wine),
        Columns("diabetes", 442, 10, 5, diabetes),
        Columns("cancer-10", 556, 10, 5, partial(cancer, 10)),
        Columns("schools-centered", 1735, 10, 3, partial(schools, "centered_eight", CENTRED)),
        Columns("schools-non-centered", 1978, 10, 3, partial(schools, "non_centered_eight", NON_CENTRED)),
        Columns("moons", DRAWN + DRAWN_HELD_OUT, 2, 3, partial(drawn, moons), overlap=0.0),
        Columns("rings", DRAWN + DRAWN_HELD_OUT, 2, 3, partial(drawn, rings), overlap=0.0),
        Columns("checkerboard", DRAWN + DRAWN_HELD_OUT, 2, 3, partial(drawn, checkerboard), overlap=0.0),
        Columns("banana", DRAWN + DRAWN_HELD_OUT, 2, 3, partial(drawn, banana), overlap=0.0),
        Columns("funnel", DRAWN + DRAWN_HELD_OUT, 10, 3, partial(drawn, funnel), overlap=0.0),
        Columns("cancer-30", 556, 30, 5, partial(cancer, 30)),
        Columns("digits-16", 1797, 16, 3, components),
    )
}
"""The tables on which methods are compared."""
OTHERS: dict[str, Columns] = {
    table.name: table
    for table in (
        Columns("digits-64", 1797, 64, 3, digits),
        Columns("patches", PATCHES + PATCHES_HELD_OUT, 63, 3, patches, overlap=1.0 / 3.0),
        Columns("mixture-8", DRAWN + DRAWN_HELD_OUT, 8, 3, partial(six_modes, 8), overlap=0.0),
        Columns("mixture-32", DRAWN + DRAWN_HELD_OUT, 32, 3, partial(six_modes, 32), overlap=0.0),
    )
}
"""Tables for other benchmarks. Some methods would take hours on the first two, and one is the true model of the last two."""
