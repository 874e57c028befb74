"""The page of the NUTS benchmark: its tables, its picture and its text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import markdown, provenance, wrapped

PICTURE = Path("docs/images/nuts.png")
COMMAND = "taskset -c 0 python benchmarks/nuts.py"
RIVALS = ("closed form", "amortized", "learned", "Hutchinson", "exact")
GAPS = ("amortized less exact", "learned less exact", "truth less exact")
ENOUGH = 100
"""Effective sample size above which the leapfrog steps per effective draw of a prior are used."""


def posteriors_of(cells: Mapping[str, dict]) -> dict[str, dict]:
    """Cells whose name is a dimension."""
    return {name: cell for name, cell in cells.items() if name.isdecimal()}


def price(cell: Mapping[str, dict], rival: str) -> float:
    """Time per effective draw, relative to the closed form."""
    run, unit = cell[rival], cell["closed form"]
    leapfrogs = (run if run["ess"] > ENOUGH else unit)["leapfrogs per ess"]
    return run["per leapfrog"] * leapfrogs / (unit["per leapfrog"] * unit["leapfrogs per ess"])


def picture(cells: Mapping[str, dict]) -> None:
    """Plot the time of a leapfrog step and of an effective draw against the dimension."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    dims = list(posteriors_of(cells))
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0))
    colors = dict(zip(RIVALS, ("0.5", "C1", "C4", "C0", "black"), strict=True))
    for rival in RIVALS:
        style: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.2, "color": colors[rival], "label": rival}
        axes[0].plot([int(d) for d in dims], [cells[d][rival]["per leapfrog"] for d in dims], **style)
        axes[1].plot([int(d) for d in dims], [price(cells[d], rival) for d in dims], **style)
    axes[0].set(ylabel="ms per leapfrog step of four chains")
    axes[1].set(ylabel="time per effective draw,\nrelative to the closed form")
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="dimension")
        ax.set_xticks([int(d) for d in dims])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)
    plt.close(figure)


def page(cells: Mapping[str, dict]) -> str:
    """The text of docs/nuts.md."""
    rows, posteriors = [], posteriors_of(cells)
    for dim, cell in posteriors.items():
        unit = cell["closed form"]
        for rival in RIVALS:
            run = cell[rival]
            rows.append(
                [
                    f"{dim}, {rival}",
                    f"{run['per leapfrog']:.3f}" if run["per leapfrog"] < 1.0 else f"{run['per leapfrog']:.1f}",
                    f"{run['per leapfrog'] / unit['per leapfrog']:.1f}",
                    f"{run['leapfrogs per ess']:.1f}" if run["ess"] > ENOUGH else "-",
                    f"{price(cell, rival):.1f}",
                    f"{run['compilation']:.1f}",
                    f"{run['draws']}",
                ]
            )
    header = [
        "D, prior",
        "ms per leapfrog step",
        "relative to closed form",
        "leapfrog steps per effective draw",
        "time per effective draw, relative to closed form",
        "compilation, s",
        "draws per chain",
    ]
    errors = markdown(
        [
            "D",
            *(f"{name.replace('less', 'minus')}: mean, root mean square" for name in GAPS),
            "share of the posterior in one component",
        ],
        [
            [name, *(f"{cell[gap]['bias']:+.3f}, {cell[gap]['rmse']:.3f}" for gap in GAPS), f"{cell['in view']:.4f}"]
            for name, cell in posteriors.items()
        ],
    )
    reports = "\n".join(f"- D = {name}: {cell['amortization']}." for name, cell in posteriors.items())
    parts = [
        "# What does a leapfrog step cost?",
        wrapped(
            "This page shows how much longer NUTS takes with a learned prior than with a prior in closed form, and where the "
            "time goes."
        ),
        wrapped(
            "Four vectorized chains sample a posterior. The likelihood is always the same. The prior is a mixture in closed "
            "form, or a density learned from 20,000 of its rows. All runs use the step size and mass matrix that were adapted "
            "with the closed form."
        ),
        wrapped(
            "A leapfrog step is one value and gradient of the log density of four points, plus the work of NUTS around it, on "
            "one core. Compilation is listed separately. If there was not enough time for an effective sample size of "
            f"{ENOUGH}, the table uses the leapfrog steps of the closed form in place of the prior's own."
        ),
        "![Time of a leapfrog step and of an effective draw against the dimension](images/nuts.png)",
        markdown(header, rows),
        wrapped(
            "The next table shows how far each log density is from that of the flow with its exact divergence, on fresh draws "
            "of the mixture, in nats. The truth is the mixture itself. If the truth is further from the flow than the amortized "
            "density is, the error of the flow is larger than that of the amortization."
        ),
        errors,
        "The reports of `distill` for these densities:",
        reports,
    ]
    if "profile" in cells:
        parts += profile_section(cells["profile"], posteriors)
    if "population" in cells:
        parts += population_section(cells["population"])
    return "\n\n".join([*parts, provenance(COMMAND, cells.values())]) + "\n"


def profile_section(cell: Mapping[str, Any], posteriors: Mapping[str, dict]) -> list[str]:
    """Where the time of a leapfrog step goes, and the time of the arithmetic alone."""
    rows = []
    for row in cell["rows"]:
        whole = {rival: 1e3 * posteriors[str(row["dim"])][rival]["per leapfrog"] for rival in RIVALS[:2]}
        rows.append(
            [
                str(row["dim"]),
                *(f"{whole[rival]:.1f}, {row[rival]:.1f}" for rival in RIVALS[:2]),
                f"{row['flop'] / 1e6:.2f}",
                f"{row['bytes'] / 1e6:.2f}",
                f"{1e6 * row['flop'] / cell['flop a second']:.1f}",
            ]
        )
    header = [
        "D",
        "closed form: leapfrog step, log density and gradient, us",
        "amortized: leapfrog step, log density and gradient, us",
        "amortized: operations, millions",
        "amortized: bytes accessed, millions",
        "the same operations as one matrix product, us",
    ]
    return [
        "## Where the time goes",
        wrapped(
            "The table shows the time of the log density of four points and its gradient alone, in a loop. The rest of a "
            "leapfrog step is NUTS and the likelihood."
        ),
        wrapped(
            "The last column is a lower bound: the time of the same operations as one matrix product. On this machine, a product "
            f"of two matrices of 1,024 rows takes {cell['flop a second'] / 1e9:.0f} billion operations per second. The network "
            "takes longer, because it consists of small products and of kernels that XLA starts one after another for four "
            "points. With fewer units it would be faster and less accurate. With everything in one kernel it would come close "
            "to the bound."
        ),
        markdown(header, rows),
    ]


def population_section(cell: Mapping[str, Any]) -> list[str]:
    """Many small posteriors in one vectorized run."""
    header = [
        "prior",
        "objects per second",
        "first run with compilation, s",
        "error of the posterior mean",
        "error in posterior standard deviations",
    ]
    rows = [
        [
            rival,
            f"{cell[rival]['objects per second']:.1f}",
            f"{cell[rival]['first run']:.0f}",
            f"{cell[rival]['rms error']:.3f}",
            f"{cell[rival]['calibration']:.3f}",
        ]
        for rival in ("closed form", "amortized")
    ]
    return [
        "## A population",
        wrapped(
            "The posteriors of 1,000 objects with a correlated prior in 16 dimensions are sampled in one vectorized run, with "
            "200 draws of each after 200 of warm-up. With a thousand chains at once, the arithmetic dominates, and the network "
            "has more of it than the closed form."
        ),
        markdown(header, rows),
    ]
