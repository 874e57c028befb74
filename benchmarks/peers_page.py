"""The page of the benchmark of held-out log scores: its tables, its picture and what they say."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from columns import TABLES
from rivals import METHODS, OURS
from tables import markdown, provenance

MARGIN = 0.4
"""Nats a column that training rows may score above held-out ones: log 1.5."""
PICTURE = Path("docs/images/peers.png")
COMMAND = "python benchmarks/peers.py"


class Name(NamedTuple):
    """Which cell."""

    table: str
    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.table}-{self.method}-{self.seed}"

    @property
    def is_sampled(self) -> bool:
        """Whether NUTS samples its density: the first split of a real table, learned by this package."""
        return TABLES[self.table].real and self.method in OURS and self.seed == 0

    @property
    def chains(self) -> str:
        """The cell of these chains."""
        return f"{self.table}-{self.method}-nuts"


Cells = Mapping[Name, dict]
SCHOOLS = {
    "posterior": "Under the exact posteriors of the eight schools, with their support,",
    "columns": "Under the exact posteriors as densities of the table's columns, which do not say that a scale is positive,",
    "support": "Under a flow fitted with `support=` for that column,",
}
"""What else NUTS samples there, to tell whether it is the posterior, its edge or a spike that makes it diverge."""


class Difference(NamedTuple):
    """By how much the score of one method is above that of another, with its standard error, in nats a row."""

    mean: float
    error: float


def difference(cells: Cells, table: str, one: str, other: str) -> Difference:
    r"""Mean over the splits that both have, and its standard error.

    With $d_{jr}$ the difference at held-out row $r$ of split $j$, $\bar d_j$ its mean, $J$ splits and $\lambda$ the rows held
    out for each row to learn from, $\mathrm{se}^2 = v\,(1/J + \lambda)$ (Nadeau and Bengio 2003); $\lambda = 0$ where each
    split has fresh rows. $v$, the variance of $\bar d_j$, is the larger of what the splits say and what the rows say: few splits
    may agree by chance, and rows do not know that another training set gives another density.
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
    """Mean over splits of a figure, NaN where there is no cell."""
    values = [cell[key] for name, cell in cells.items() if (name.table, name.method) == (table, method)]
    return float(np.mean(values)) if values else np.nan


def comparable(cells: Cells, *ours: str) -> dict[Name, dict]:
    """The cells of the peers and of these methods of this package: of each table the splits that all have of which it has any."""
    there = {name: value for name, value in cells.items() if name.method in ours or name.method not in OURS}
    shared = {}
    for table in TABLES:
        seeds = [{n.seed for n in there if (n.table, n.method) == (table, m)} for m in methods_of(there, table)]
        shared[table] = set.intersection(*seeds) if seeds else set()
    return {name: value for name, value in there.items() if name.seed in shared[name.table]}


def tables_of(cells: Cells) -> list[str]:
    """Tables of which there is a cell, in their order."""
    return [t for t in TABLES if methods_of(cells, t)]


def splits_of(cells: Cells, table: str) -> str:
    """How many splits of a table there are cells of."""
    return str(len({n.seed for n in cells if n.table == table}))


def shown(cells: Cells) -> list[str]:
    """Methods that have a cell of any table, in their order."""
    return [m for m in METHODS if any(n.method == m for n in cells)]


def peers_of(cells: Cells, table: str) -> list[str]:
    """Those of other packages that have a cell of a table."""
    return [m for m in methods_of(cells, table) if m not in OURS]


def methods_of(cells: Cells, table: str) -> list[str]:
    """Methods that have a cell of a table, in their order."""
    return [m for m in METHODS if any((n.table, n.method) == (table, m) for n in cells)]


def best_of(cells: Cells, table: str, methods: Sequence[str]) -> str:
    """The method with the best mean score."""
    return max(methods, key=lambda m: mean(cells, table, m, "score"))


def score_table(cells: Cells) -> str:
    """Mean scores: the best in bold, those within one paired standard error of it in italics."""
    rows = []
    for table in tables_of(cells):
        there = methods_of(cells, table)
        best = best_of(cells, table, there)
        row = [
            table + ("" if TABLES[table].counted else ", not counted"),
            f"{TABLES[table].rows:,} x {TABLES[table].dim}",
            splits_of(cells, table),
        ]
        for method in shown(cells):
            if method not in there:
                row.append("")
                continue
            text = f"{mean(cells, table, method, 'score'):.3f}"
            behind = difference(cells, table, method, best)
            row.append(f"**{text}**" if method == best else f"*{text}*" if behind.mean >= -behind.error else text)
        rows.append(row)
    return markdown(["", "rows x columns", "splits", *shown(cells)], rows)


def difference_table(cells: Cells, method: str, others: Sequence[str] = ("gaussian",)) -> str:
    """A method of this package beside the best peer and others, and with the exact divergence."""
    rows = []
    for table in (t for t in TABLES if method in methods_of(cells, t) and peers_of(cells, t)):
        best = best_of(cells, table, peers_of(cells, table))
        there = methods_of(cells, table)
        beside = (difference(cells, table, method, each) if each in there else None for each in (best, *others))
        ahead, *more = ("" if each is None else f"{each.mean:+.3f} +- {each.error:.3f}" for each in beside)
        exact = mean(cells, table, method, "exact") - mean(cells, table, method, "score")
        rows.append([table, splits_of(cells, table), ahead, best, *more, f"{exact:+.3f}"])
    names = [f"minus {other}" for other in others]
    return markdown(["", "splits", "minus the best peer", "which", *names, "exact minus learned divergence"], rows)


def figures(cells: Cells, figure: Callable[[str, str], float], form: str = ".1f") -> str:
    """A figure of every method, given the table and the method, on every table."""
    rows = []
    for table in tables_of(cells):
        values = [figure(table, method) for method in shown(cells)]
        rows.append([table, *("" if np.isnan(value) else format(value, form) for value in values)])
    return markdown(["", *shown(cells)], rows)


def means(cells: Cells, key: str, unit: float = 1.0) -> str:
    """A figure of every cell, mean over splits, in this unit."""
    return figures(cells, lambda table, method: mean(cells, table, method, key) / unit)


def cost(cells: Cells, method: str, peer: str) -> str:
    """How many times as long a method takes as a peer: the least and the most of all tables, of a mean over splits."""
    both = [t for t in TABLES if {method, peer} <= set(methods_of(cells, t))]
    if not both:
        return ""

    def times(key: str) -> str:
        ratios = [mean(cells, t, method, key) / mean(cells, t, peer, key) for t in both]
        return f"{min(ratios):.2g} to {max(ratios):.2g}"

    return (
        f"Beside `{peer}`, `fit_{method}` takes {times('seconds to fit')} times as long, `log_prob` "
        f"{times('seconds of 1,000 log_prob')} times, and samples {times('seconds of 1,000 samples')} times."
    )


def gap(cells: Cells, table: str, method: str) -> float:
    """Mean score of training rows minus that of held-out rows, nats a row."""
    return mean(cells, table, method, "training score") - mean(cells, table, method, "score")


def verdict(cells: Cells, method: str) -> str:
    """On how many of the counted tables a method of this package is the best, and where a peer is."""
    first, close, worse, lost = 0, 0, [], []
    counted = [t for t in TABLES if TABLES[t].counted and {method, "gaussian"} <= set(methods_of(cells, t))]
    if not counted:
        return ""
    for table in counted:
        best = best_of(cells, table, peers_of(cells, table))
        ahead = difference(cells, table, method, best)
        plain = difference(cells, table, method, "gaussian")
        first += ahead.mean >= 0.0
        close += ahead.mean >= -ahead.error
        if ahead.mean < -ahead.error:
            lost.append(f"{table} ({best}, by {-ahead.mean:.3f} +- {ahead.error:.3f})")
        if plain.mean < -plain.error:
            worse.append(table)
    return (
        f"**`fit_{method}`** is best or within one paired standard error of the best on {close} of {len(counted)} counted "
        f"tables, and the best on {first}; it is worse than the full Gaussian beyond one paired standard error on "
        f"{len(worse)}"
        + (f": {', '.join(worse)}." if worse else ".")
        + (f" A peer is better on {'; '.join(lost)}." if lost else "")
    )


def listed(shares: Mapping[str, float]) -> str:
    """Shares of tables in percent."""
    return ", ".join(f"{100.0 * share:.2f} % ({table})" for table, share in shares.items())


def spikes(cells: Cells, chains: Cells, method: str) -> str:
    """How far training rows score above held-out ones on real tables, and how often NUTS diverges there."""
    real = [t for t in TABLES if TABLES[t].real and method in methods_of(cells, t)]
    if not real:
        return ""
    gaps = {t: gap(cells, t, method) / TABLES[t].dim for t in real}
    widest = max(gaps, key=gaps.__getitem__)
    line = (
        f"**`fit_{method}`** on {len(real)} real tables: training rows score at most {gaps[widest]:.2f} nats a column above "
        f"held-out ones ({widest})"
    )
    beyond = [t for t in real if gaps[t] > MARGIN]
    shares = {name.table: cell["divergent"] for name, cell in chains.items() if name.method == method}
    if shares:
        line += f", and of the transitions of NUTS on {len(shares)} of them {listed(shares)} diverge"
        beyond += [t for t in shares if shares[t] > 0.01 and t not in beyond]
    return line + ". " + (f"Beyond a limit: {', '.join(beyond)}." if beyond else "All are within the limits.")


def draw(cells: Cells) -> None:
    """Every method's score minus the best, for each column of the table, with paired standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tables = tables_of(cells)
    methods = shown(cells)
    figure, axes = plt.subplots(figsize=(8.0, 1.6 + 0.42 * len(tables)), layout="constrained")
    colors = dict(zip(METHODS, ("0.55", "C0", "C9", "C2", "C8", "C4", "C6", "C3", "C1"), strict=True))
    markers = dict(zip(METHODS, "xsD^v<>oo", strict=True))
    for number, table in enumerate(tables):
        there = methods_of(cells, table)
        best = best_of(cells, table, there)
        if number % 2:
            axes.axhspan(number - 0.5, number + 0.5, color="0.95", zorder=0)
        for place, method in enumerate(methods):
            if method not in there:
                continue
            behind = difference(cells, table, method, best)
            axes.errorbar(
                behind.mean / TABLES[table].dim,
                number + 0.7 * ((place + 0.5) / len(methods) - 0.5),
                xerr=behind.error / TABLES[table].dim,
                fmt=markers[method],
                markersize=5.5 if method in OURS else 4.0,
                color=colors[method],
                elinewidth=1.0,
                label=method if table == next(t for t in tables if method in methods_of(cells, t)) else None,
            )
    axes.set_xscale("symlog", linthresh=0.01, linscale=0.5)
    lowest, ticks = axes.get_xlim()[0], [-100.0, -10.0, -1.0, -0.1, -0.01, 0.0, 0.01]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xlim(lowest, 0.02)
    axes.axvline(0.0, color="0.5", linewidth=0.8, zorder=0)
    axes.set_yticks(range(len(tables)), [t if TABLES[t].counted else f"({t})" for t in tables])
    axes.set_ylim(len(tables) - 0.5, -0.5)
    axes.set_xlabel("held-out log score minus the best, nats per row and column")
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=8)
    figure.savefig(PICTURE, dpi=200)
    plt.close(figure)


def text(cells: Cells, chains: Cells, schools: Mapping[str, Mapping[str, float]], total: int) -> str:
    """The tables as Markdown, of the cells that there are, out of `total`, and can be compared."""
    flow, both = comparable(cells, "flow"), comparable(cells, *OURS)
    diffused = [t for t in TABLES if "diffusion" in methods_of(both, t)]
    ours = {name: value for name, value in both.items() if name.method in OURS and name.table in diffused}
    cores = sorted({c["cores"] for c in flow.values()})
    packages = ", ".join(sorted({c["package"] for n, c in cells.items() if n.method not in OURS}))
    parts = [
        f"**Partial: {len(cells)} of {total} cells.** Of each table the splits that all its methods have."
        if len(cells) < total
        else "",
        verdict(flow, "flow"),
        "Mean log score of held-out rows, nats a row: the best in bold, what is within a paired standard error of it in italics.",
        score_table(flow),
        "![Held-out log scores minus the best](images/peers.png)",
        "Held-out log scores minus that of the best method, divided by the number of columns, with paired standard errors. The "
        "axis is linear between -0.01 and 0.01 and logarithmic beyond; tables in brackets are not counted.",
        "## Beside the best peer\n\nDifferences of mean log scores with their paired standard errors, nats a row.",
        difference_table(flow, "flow"),
        "## Training rows\n\nMean log score of training rows minus that of held-out rows, nats a row: what was learned by heart.",
        figures(flow, partial(gap, flow), ".2f"),
        spikes(flow, chains, "flow"),
        *(
            f"{SCHOOLS[kind]} {listed(shares)} of the transitions diverge."
            for kind, shares in schools.items()
            if shares
        ),
        f"## Times\n\nSeconds to fit, compilation included, on {' or '.join(map(str, cores))} core{'s' * (cores != [1])}.",
        means(flow, "seconds to fit"),
        cost(flow, "flow", "flowjax-maf"),
        "Milliseconds of `log_prob` of 1,000 rows, the second call.",
        means(flow, "seconds of 1,000 log_prob", 1e-3),
        "Milliseconds of 1,000 samples, the second call.",
        means(flow, "seconds of 1,000 samples", 1e-3),
    ]
    if diffused:
        parts += [
            "## A diffusion instead\n\nOf the splits that `fit_diffusion` has as well, by the same rules.",
            verdict(both, "diffusion"),
            difference_table(both, "diffusion", ("flow", "gaussian")),
            spikes(both, chains, "diffusion"),
            "Seconds to fit, and milliseconds of `log_prob` of 1,000 rows.",
            means(ours, "seconds to fit"),
            means(ours, "seconds of 1,000 log_prob", 1e-3),
        ]
    parts.append(f"{provenance(COMMAND, cells.values())} Peers: {packages}.")
    return "\n\n".join(part for part in parts if part)
