"""The page of the benchmark of held-out log scores: its tables, its picture and its text."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from columns import TABLES
from rivals import METHODS, OURS
from tables import markdown, provenance

MARGIN = 0.4
"""Limit on the score of training rows above that of held-out rows, in nats per column: log 1.5."""
PICTURE = Path("docs/images/peers.png")
COMMAND = "python benchmarks/peers.py"
SAMPLED = ("iris", "wine", "schools-centered", "schools-non-centered", "digits-16")
"""Tables whose learned densities NUTS samples, with learned divergences, within ten minutes."""


class Name(NamedTuple):
    """Name of a cell."""

    table: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.table}-{self.method}-{self.seed}"

    @property
    def is_sampled(self) -> bool:
        """Whether NUTS samples its density: that of a flow, fitted to the first split."""
        return self.table in SAMPLED and self.method == OURS and self.seed == 0

    @property
    def chains(self) -> str:
        """Name of the cell of its chains."""
        return f"{self.table}-{self.method}-nuts"


Cells = Mapping[Name, dict]
SCHOOLS = {
    "posterior": "the exact posteriors of the eight schools, with the constraint that a scale is positive",
    "columns": "the exact posteriors, if NUTS samples the columns as the table has them, without this constraint",
    "support": "a flow fitted with `support=` for that column",
}
"""Other densities that NUTS samples, to tell whether divergent transitions come from the posterior, its edge or a spike."""


class Difference(NamedTuple):
    """Score of one method minus that of another, with its standard error, in nats per row."""

    mean: float
    error: float


def difference(cells: Cells, table: str, one: str, other: str) -> Difference:
    r"""Mean difference over the splits that both methods have, and its standard error.

    Let $d_{jr}$ be the difference at held-out row $r$ of split $j$, $\bar d_j$ its mean, $J$ the number of splits and
    $\lambda$ the number of held-out rows for each training row. Then $\mathrm{se}^2 = v\,(1/J + \lambda)$ (Nadeau and Bengio
    2003). If each split has fresh rows, $\lambda = 0$. The variance $v$ of $\bar d_j$ is estimated from the splits and from the
    rows, and the larger estimate is used: a few splits may agree by chance, and the rows do not contain the variation between
    training sets.
    """
    seeds = [n.seed for n in cells if n.table == table and n.method == one and n._replace(method=other) in cells]
    paired = [
        np.asarray(cells[Name(table, one, s)]["rows"]) - np.asarray(cells[Name(table, other, s)]["rows"]) for s in seeds
    ]
    means = [float(d.mean()) for d in paired]
    of_rows = float(np.mean([d.var(ddof=1) / len(d) for d in paired]))
    of_splits = float(np.var(means, ddof=1)) if len(means) > 1 else 0.0
    overlap = TABLES[table].overlap if len(means) > 1 else 0.0
    error = np.sqrt(max(of_rows, of_splits) * (1.0 / len(means) + overlap))
    return Difference(float(np.mean(means)), float(error))


def mean(cells: Cells, table: str, method: str, key: str) -> float:
    """Mean of a figure over splits, NaN if there is no cell."""
    values = [cell[key] for name, cell in cells.items() if (name.table, name.method) == (table, method)]
    return float(np.mean(values)) if values else np.nan


def peers_of(cells: Cells, table: str) -> list[str]:
    """Methods of other packages that have a cell in a table."""
    return [m for m in methods_of(cells, table) if m != OURS]


def methods_of(cells: Cells, table: str) -> list[str]:
    """Methods that have a cell in a table, in their order."""
    return [m for m in METHODS if any((n.table, n.method) == (table, m) for n in cells)]


def best_of(cells: Cells, table: str, methods: Sequence[str]) -> str:
    """The method with the best mean score."""
    return max(methods, key=lambda m: mean(cells, table, m, "score"))


def score_table(cells: Cells) -> str:
    """Mean scores, with the best in bold and those within one paired standard error of it in italics."""
    rows = []
    for table in TABLES:
        there = methods_of(cells, table)
        best = best_of(cells, table, there)
        row = [table, f"{TABLES[table].rows:,} x {TABLES[table].dim}"]
        for method in METHODS:
            if method not in there:
                row.append("")
                continue
            text = f"{mean(cells, table, method, 'score'):.3f}"
            behind = difference(cells, table, method, best)
            row.append(f"**{text}**" if method == best else f"*{text}*" if behind.mean >= -behind.error else text)
        rows.append(row)
    return markdown(["", "rows x columns", *METHODS], rows)


def difference_table(cells: Cells) -> str:
    """The flow compared with the best of the other methods, with a Gaussian, and with its exact divergence."""
    rows = []
    for table in TABLES:
        best = best_of(cells, table, peers_of(cells, table))
        ahead, plain = (difference(cells, table, OURS, each) for each in (best, "gaussian"))
        exact = mean(cells, table, OURS, "exact") - mean(cells, table, OURS, "score")
        rows.append(
            [
                table,
                str(TABLES[table].splits),
                f"{ahead.mean:+.3f} +- {ahead.error:.3f}",
                best,
                f"{plain.mean:+.3f} +- {plain.error:.3f}",
                f"{exact:+.3f}",
            ]
        )
    header = [
        "",
        "splits",
        "flow minus best other",
        "best other",
        "flow minus gaussian",
        "exact minus learned divergence",
    ]
    return markdown(header, rows)


def figures(cells: Cells, figure: Callable[[str, str], float], form: str = ".1f") -> str:
    """A table of `figure(table, method)` for every table and method."""
    rows = []
    for table in TABLES:
        values = [figure(table, method) for method in METHODS]
        rows.append([table, *("" if np.isnan(value) else format(value, form) for value in values)])
    return markdown(["", *METHODS], rows)


def means(cells: Cells, key: str, unit: float = 1.0) -> str:
    """A figure of every table and method, as a mean over splits, in a unit."""
    return figures(cells, lambda table, method: mean(cells, table, method, key) / unit)


def cost(cells: Cells, peer: str) -> str:
    """Range over tables of the time of the flow relative to one of another package."""
    both = [t for t in TABLES if {OURS, peer} <= set(methods_of(cells, t))]

    def times(key: str) -> str:
        ratios = [mean(cells, t, OURS, key) / mean(cells, t, peer, key) for t in both]
        return f"{min(ratios):.2g} to {max(ratios):.2g}"

    return (
        f"Compared with `{peer}`, `fit_flow` takes {times('seconds to fit')} times as long to fit, "
        f"{times('seconds of 1,000 log_prob')} times as long for `log_prob`, and {times('seconds of 1,000 samples')} times as "
        "long to sample."
    )


def gap(cells: Cells, table: str, method: str) -> float:
    """Mean score of training rows minus that of held-out rows, in nats per row."""
    return mean(cells, table, method, "training score") - mean(cells, table, method, "score")


def verdict(cells: Cells) -> str:
    """Number of tables on which the flow is the best, and the tables on which it is not."""
    first, close, worse, lost = 0, 0, [], []
    for table in TABLES:
        best = best_of(cells, table, peers_of(cells, table))
        ahead, plain = (difference(cells, table, OURS, each) for each in (best, "gaussian"))
        first += ahead.mean >= 0.0
        close += ahead.mean >= -ahead.error
        if ahead.mean < -ahead.error:
            lost.append(f"{table} ({best}, by {-ahead.mean:.3f} +- {ahead.error:.3f})")
        if plain.mean < -plain.error:
            worse.append(table)
    return (
        f"`fit_flow` is the best on {first} of {len(TABLES)} tables, and the best or within one paired standard error of "
        f"the best on {close}."
        + (f" Another method is better on {'; '.join(lost)}." if lost else "")
        + (
            f" It is worse than the full Gaussian by more than one paired standard error on {', '.join(worse)}."
            if worse
            else " On no table is it worse than the full Gaussian by more than one paired standard error."
        )
    )


def listed(shares: Mapping[str, float]) -> str:
    """Shares of tables in percent."""
    return ", ".join(f"{100.0 * share:.2f} % ({table})" for table, share in shares.items())


def spikes(cells: Cells, chains: Cells) -> str:
    """Scores of training rows above held-out rows on real tables, and shares of divergent transitions of NUTS."""
    gaps = {t: gap(cells, t, OURS) / TABLES[t].dim for t in TABLES if TABLES[t].real}
    shares = {name.table: cell["divergent"] for name, cell in chains.items()}
    widest = max(gaps, key=gaps.__getitem__)
    beyond = [t for t in gaps if gaps[t] > MARGIN or shares.get(t, 0.0) > 0.01]
    return (
        f"On the {len(gaps)} real tables, the score of training rows is at most {gaps[widest]:.2f} nats per column higher than "
        f"that of held-out rows ({widest}). On {len(shares)} of them NUTS was run, with these shares of divergent transitions: "
        f"{listed(shares)}. "
        + (
            f"Only {' and '.join(beyond)} exceed{'s' * (len(beyond) == 1)} a limit."
            if beyond
            else "None exceeds a limit."
        )
    )


def draw(cells: Cells) -> None:
    """Plot the scores minus the best one, divided by the number of columns, with paired standard errors."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.0, 1.6 + 0.42 * len(TABLES)))
    colors = ("C1", "0.55", "C4", "C5", "C2", "C0", "C0", "C3", "C3")
    looks = dict(zip(METHODS, zip(colors, "oxsD^v<>P", strict=True), strict=True))
    for number, table in enumerate(TABLES):
        there = methods_of(cells, table)
        best = best_of(cells, table, there)
        if number % 2:
            axes.axhspan(number - 0.5, number + 0.5, color="0.95", zorder=0)
        for place, method in enumerate(METHODS):
            if method not in there:
                continue
            behind = difference(cells, table, method, best)
            if not np.isfinite(behind.mean):  # a vine gives a density of zero to rows beyond its margins
                continue
            axes.errorbar(
                behind.mean / TABLES[table].dim,
                number + 0.7 * ((place + 0.5) / len(METHODS) - 0.5),
                xerr=behind.error / TABLES[table].dim,
                fmt=looks[method][1],
                markersize=6.0 if method == OURS else 4.0,
                color=looks[method][0],
                elinewidth=1.0,
                label=method if table == next(t for t in TABLES if method in methods_of(cells, t)) else None,
            )
    axes.set_xscale("symlog", linthresh=0.01, linscale=0.5)
    lowest, ticks = axes.get_xlim()[0], [-100.0, -10.0, -1.0, -0.1, -0.01, 0.0, 0.01]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(lowest, 0.02)
    axes.axvline(0.0, color="0.5", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(TABLES)), list(TABLES))
    axes.set_ylim(len(TABLES) - 0.5, -0.5)
    axes.set_xlabel("held-out log score minus the best, nats per row and column")
    figure.legend(loc="outside upper center", ncols=5)
    figure.savefig(PICTURE)
    plt.close(figure)


def text(cells: Cells, chains: Cells, schools: Mapping[str, Mapping[str, float]]) -> str:
    """The tables as Markdown."""
    cores = sorted({c["cores"] for c in cells.values()})
    packages = ", ".join(sorted({c["package"] for n, c in cells.items() if n.method != OURS}))
    parts = [
        verdict(cells),
        "The table gives the mean log score of held-out rows, in nats per row. The best score is in bold. Scores within one "
        "paired standard error of the best are in italics.",
        score_table(cells),
        "![Held-out log scores minus the best](images/peers.png)",
        "The picture shows held-out log scores minus the score of the best method, divided by the number of columns, with paired "
        "standard errors. The axis is linear between -0.01 and 0.01 and logarithmic beyond.",
        "## Comparison with the best other method\n\nThe table gives differences of mean log scores with their paired standard "
        "errors, in nats per row.",
        difference_table(cells),
        "## Training rows\n\nThe table gives the mean log score of training rows minus that of held-out rows, in nats per row. "
        "It shows how far a method has memorized its training rows.",
        figures(cells, partial(gap, cells), ".2f"),
        spikes(cells, chains),
        *(
            f"Shares of divergent transitions under {SCHOOLS[kind]}: {listed(shares)}."
            for kind, shares in schools.items()
        ),
        f"## Times\n\nSeconds to fit, including compilation, on {' or '.join(map(str, cores))} core{'s' * (cores != [1])}.",
        means(cells, "seconds to fit"),
        cost(cells, "flowjax-maf"),
        "Milliseconds for `log_prob` of 1,000 rows, in the second call.",
        means(cells, "seconds of 1,000 log_prob", 1e-3),
        "Milliseconds for 1,000 samples, in the second call.",
        means(cells, "seconds of 1,000 samples", 1e-3),
        f"{provenance(COMMAND, cells.values())} Other packages: {packages}.",
    ]
    return "\n\n".join(parts)
