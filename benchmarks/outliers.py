"""How often does a fit mistake the end of a heavy tail for an outlier, and which outliers does it find?

    python benchmarks/outliers.py    # half a minute

Writes the table of docs/columns.md.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tables import environment, markdown, provenance, replace_block

from flowdensity.data.outliers import far_values

PAGE = Path(__file__).parents[1] / "docs" / "columns.md"
SIZES, COLUMNS = (200, 2000, 20_000), 1000
Law = Callable[[np.random.Generator, int], np.ndarray]
LAWS: dict[str, Law] = {
    "Student t, 2 degrees of freedom": lambda rng, n: rng.standard_t(2.0, n),
    "Cauchy": lambda rng, n: rng.standard_cauchy(n),
    "Pareto, index 0.5": lambda rng, n: rng.pareto(0.5, n),
    "lognormal, sigma 2": lambda rng, n: rng.lognormal(0.0, 2.0, n),
    "two narrow Student t modes far apart": lambda rng, n: 0.1 * rng.standard_t(2.0, n) + rng.choice([-10.0, 10.0], n),
    "Student t, rounded to 0.1": lambda rng, n: np.round(rng.standard_t(2.0, n), 1),
    "Student t, values above 20 set to 20": lambda rng, n: np.minimum(rng.standard_t(2.0, n), 20.0),
    "Student t, rows resampled with replacement": lambda rng, n: rng.choice(rng.standard_t(2.0, n), n),
    "exp(3 z) times a normal (funnel)": lambda rng, n: np.exp(3.0 * rng.normal(size=n)) * rng.normal(size=n),
    "normal, one row at 100": lambda rng, n: np.append(rng.normal(size=n - 1), 100.0),
    "normal, one row at 1e12": lambda rng, n: np.append(rng.normal(size=n - 1), 1e12),
    "normal, five rows at -999": lambda rng, n: np.append(rng.normal(size=n - 5), np.full(5, -999.0)),
    "normal, mean 500, sd 100, rounded to integers, 2 % at -1": lambda rng, n: np.where(
        rng.random(n) < 0.02, -1.0, np.round(rng.normal(500.0, 100.0, n))
    ),
}


def share(law: Law, rows: int) -> float:
    """Share of columns with an outlier at either end."""
    rng = np.random.default_rng(0)
    columns = (law(rng, rows) for _ in range(COLUMNS))
    return float(np.mean([len(far_values(column)) + len(far_values(-column)) > 0 for column in columns]))


def main() -> None:
    """Compute all shares and write the table."""
    rows = [[name, *(f"{share(law, size):.1%}" for size in SIZES)] for name, law in LAWS.items()]
    table = markdown(["kind of column", *(f"{size:,} rows" for size in SIZES)], rows)
    print(table)
    made = provenance("python benchmarks/outliers.py", [{"made with": environment()}])
    replace_block(PAGE, "outliers", f"{table}\n\n{made}")


if __name__ == "__main__":
    main()
