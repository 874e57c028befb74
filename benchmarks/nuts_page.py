"""The page of the benchmark of NUTS: its tables, its picture and what they say."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tables import markdown, provenance

PICTURE = Path("docs/images/nuts.png")
COMMAND = "taskset -c 0 python benchmarks/nuts.py"
RIVALS = ("closed form", "amortized", "learned", "Hutchinson", "exact")
GAPS = ("amortized less exact", "learned less exact", "truth less exact")
ENOUGH = 100
"""Effective draws from which on those of a rival count."""


def posteriors_of(cells: Mapping[str, dict]) -> dict[str, dict]:
    """The cells that are named after a dimension."""
    return {name: cell for name, cell in cells.items() if name.isdecimal()}


def price(cell: Mapping[str, dict], rival: str) -> float:
    """Time of an effective draw, over that under the closed form."""
    run, unit = cell[rival], cell["closed form"]
    leapfrogs = (run if run["ess"] > ENOUGH else unit)["leapfrogs per ess"]
    return run["per leapfrog"] * leapfrogs / (unit["per leapfrog"] * unit["leapfrogs per ess"])


def picture(cells: Mapping[str, dict]) -> None:
    """Milliseconds a leapfrog step, and the price of an effective draw, against the dimension."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, NullLocator, ScalarFormatter

    dims = list(posteriors_of(cells))
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.0), layout="constrained")
    colors = dict(zip(RIVALS, ("0.5", "#cc3311", "#ee7733", "#4477aa", "#000000"), strict=True))
    for rival in RIVALS:
        style: dict[str, Any] = {"marker": "o", "ms": 4, "lw": 1.2, "color": colors[rival], "label": rival}
        axes[0].plot([int(d) for d in dims], [cells[d][rival]["per leapfrog"] for d in dims], **style)
        axes[1].plot([int(d) for d in dims], [price(cells[d], rival) for d in dims], **style)
    axes[0].set(ylabel="ms a leapfrog step of four chains")
    axes[1].set(ylabel="time an effective draw,\nover that under the closed form")
    for ax in axes:
        ax.set(xscale="log", yscale="log", xlabel="dimension")
        ax.set_xticks([int(d) for d in dims])
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=160)
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
        "ms a leapfrog step",
        "over closed form",
        "leapfrog steps an effective draw",
        "time an effective draw, over closed form",
        "s to compile",
        "draws a chain",
    ]
    errors = markdown(
        ["D", *(f"{name}: mean, root mean square" for name in GAPS), "share of the posterior in one component"],
        [
            [name, *(f"{cell[gap]['bias']:+.3f}, {cell[gap]['rmse']:.3f}" for gap in GAPS), f"{cell['in view']:.4f}"]
            for name, cell in posteriors.items()
        ],
    )
    reports = "\n".join(f"- D = {name}: {cell['amortization']}." for name, cell in posteriors.items())
    text = (
        "# What a learned prior costs in NUTS\n\n"
        "Four vectorized chains under the same likelihood, with the prior as a closed-form mixture and as densities learned from "
        "20,000 of its rows. All run with the step size and mass matrix adapted under the closed form. A leapfrog step is one "
        "value and gradient of the log density of four points, and what NUTS does around it, on one core; compilation is apart. "
        f"Where too few draws were affordable for an effective sample size of {ENOUGH}, the leapfrog steps of the closed form "
        "are taken for the rival's own.\n\n"
        "![Time of a leapfrog step and of an effective draw against the dimension](images/nuts.png)\n\n"
        f"{markdown(header, rows)}\n\n"
        "How far each is from the flow with its exact divergence, on fresh draws of the mixture, in nats. The truth is the "
        "mixture itself: where it is further away than the amortized density, what that misses is the flow's own error.\n\n"
        f"{errors}\n\nWhat the reports of `distill` said of it:\n\n{reports}\n"
    )
    if "profile" in cells:
        text += profile_section(cells["profile"], posteriors)
    if "population" in cells:
        cell = cells["population"]
        table = markdown(
            ["prior", "objects a second", "s with compilation", "error of the posterior mean", "error over deviation"],
            [
                [
                    rival,
                    f"{cell[rival]['objects per second']:.1f}",
                    f"{cell[rival]['first run']:.0f}",
                    f"{cell[rival]['rms error']:.3f}",
                    f"{cell[rival]['calibration']:.3f}",
                ]
                for rival in ("closed form", "amortized")
            ],
        )
        text += (
            "\n## A population\n\nThe posteriors of 1,000 objects with a correlated prior in 16 dimensions, 200 draws of each "
            "after as many of warm-up, in one vectorized run. With a thousand chains at once it is the arithmetic that counts, "
            f"of which the network has more than the closed form.\n\n{table}\n"
        )
    return f"{text}\n{provenance(COMMAND, cells.values())}\n"


def profile_section(cell: Mapping[str, Any], posteriors: Mapping[str, dict]) -> str:
    """Where a leapfrog step's time goes, beside what the arithmetic alone would take."""
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
        "closed form, us a leapfrog step and of it log density and gradient",
        "amortized, us the same",
        "its million operations",
        "its million bytes",
        "us of these operations in one product",
    ]
    return (
        "\n## Where the time goes\n\n"
        "The log density of four points and its gradient by themselves, in a loop; what is left of a leapfrog step is NUTS and "
        "the likelihood. A product of two matrices of 1,024 rows does "
        f"{cell['flop a second'] / 1e9:.0f} thousand million operations a second here, which gives the last column: the floor if "
        "a network were one product. It is small products and what comes between, kernels that XLA starts one after another for "
        "four points. With fewer units it would cost less and be further off; with all of it in one kernel it would "
        "come near the floor.\n\n"
        f"{markdown(header, rows)}\n"
    )
