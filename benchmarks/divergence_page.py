"""Tables and picture of docs/which-divergence.md, from the cells of benchmarks/divergence.py."""

from collections.abc import Collection, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from tables import markdown, provenance

import flowdensity as fd

PICTURE = Path("docs/images/divergences.png")
NAMES = {
    "exact": "exact",
    "hutchinson-1": "Hutchinson, 1 probe",
    "hutchinson-4": "Hutchinson, 4",
    "hutchinson-16": "Hutchinson, 16",
    "hutch++-3": "Hutch++, 3 products",
    "hutch++-15": "Hutch++, 15",
    "regressed": "head regressed on Hutchinson",
    "stein": "Stein head",
}
"""Row labels of the tables."""


def tables(cells: Mapping[str, dict], names: Collection[str]) -> str:
    """One table of ratios and one table for each computed cell among `names`, as Markdown."""
    found = {name: cells[name] for name in names if name in cells and not name.startswith("ablation-")}
    heads = []
    for name, c in found.items():
        rows = c["rows"]
        probe, stein = rows["hutchinson-1"], rows["stein"]
        heads.append(
            [
                name,
                str(c["dim"]),
                f"{stein['bias']:+.3f}",
                f"{stein['rmse']:.3f}",
                f"{probe['rmse'] / stein['rmse']:.1f}",
                f"{rows['hutch++-3']['rmse'] / stein['rmse']:.1f}",
                f"{stein['gradient'] / probe['gradient']:.2f}",
                f"{rows['exact']['gradient'] / stein['gradient']:.1f}" if "gradient" in rows["exact"] else "",
            ]
        )
    parts = [
        markdown(
            [
                "",
                "D",
                "bias",
                "RMSE",
                "Hutchinson / head",
                "Hutch++ / head",
                "time, head / Hutchinson",
                "time, exact / head",
            ],
            heads,
        )
    ]
    for name, c in found.items():
        probe = c["rows"]["hutchinson-1"]
        table = []
        for kind, label in NAMES.items():
            if kind not in c["rows"]:
                continue
            row = c["rows"][kind]
            line = [label] + [f"{row[k]:{'+' if k == 'bias' else ''}.3f}" for k in ("bias", "sd", "rmse", "max")]
            if "gradient" in row:
                line += [f"{row[what] / probe[what]:.2f}" for what in ("log_prob", "gradient")]
                line += [f"{row['gradient memory'] / 2**20:.1f}"]
            else:
                line += ["", "", ""]
            table.append(line)
        header = [name, "bias", "sd", "RMSE", "max"]
        header += ["time, log_prob", "time, with gradient", "memory, MiB"]
        parts.append(f"### {name}\n\n{note(c)}\n\n{markdown(header, table)}")
    for name in ("flow-8", "digits"):
        if f"ablation-{name}" in cells:
            c = cells[f"ablation-{name}"]
            table = [
                [label.replace("about", "centered on")]
                + [f"{row['1x'][k]:{'+' if k == 'bias' else ''}.3f}" for k in ("bias", "rmse", "max")]
                + [f"{row['4x'][k]:{'+' if k == 'bias' else ''}.2f}" for k in ("bias", "rmse")]
                + [f"{row['seconds'] / c['rows']['kernels, rho = 0.1']['seconds']:.2f}"]
                for label, row in c["rows"].items()
            ]
            header = ["objective", "bias", "RMSE", "max", "bias at 4x", "RMSE at 4x", "training time"]
            parts.append(f"### Training objectives of a head: {name}\n\n{markdown(header, table)}")
    missing = [name for name in names if name not in cells]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join([*parts, provenance("python benchmarks/divergence.py", cells.values())])


def note(c: dict) -> str:
    """Caption of the table of a cell."""
    if "bits" in c:
        return (
            f"The table gives errors of the divergence itself, in nats per radian, for two held-out points in {c['dim']} "
            f"dimensions at eight angles of the path. Over these {c['points']} values, the standard deviation of the exact "
            f"divergence is {c['spread']:.1f}. Times are for `log_prob` of one point. The model with the head has "
            f"{c['bits']:.3f} +- {c['bits se']:.3f} bits per dimension on held-out patches."
        )
    text = f"The table gives errors of `log_prob` at {c['points']} held-out points in {c['dim']} dimensions, in nats."
    if c["levels"] is None:
        return text
    bits = fd.bits_per_dimension(c["held out"], c["dim"], unit=1 / c["levels"])
    return f"{text} The model with the exact divergence has {bits:.3f} bits per dimension on these points."


def picture(cells: Mapping[str, dict]) -> None:
    """Plot the error against the time of value and gradient, relative to one probe of Hutchinson's, for six problems."""
    shown = [name for name in ("flow-2", "flow-8", "flow-32", "VP-8", "patches-63", "digits") if name in cells]
    columns, rows_ = min(3, len(shown)), -(-len(shown) // 3)
    figure, axes = plt.subplots(
        rows_,
        columns,
        figsize=(0.4 + 2.9 * columns, 0.4 + 2.6 * rows_),
        sharex=True,
        squeeze=False,
    )
    colors = {"hutchinson": "C0", "hutch++": "C2", "regressed": "C4", "stein": "C1"}
    for ax, name in zip(axes.flat, shown, strict=False):
        rows = cells[name]["rows"]
        for family, label in (("hutchinson", "Hutchinson"), ("hutch++", "Hutch++")):
            # Hutch++ is exact with as many products as dimensions. An error of zero does not fit on a logarithmic axis.
            kinds = [kind for kind in NAMES if kind.split("-")[0] == family and rows[kind]["rmse"] > 1e-4]
            times = [rows[kind]["gradient"] / rows["hutchinson-1"]["gradient"] for kind in kinds]
            ax.plot(times, [rows[kind]["rmse"] for kind in kinds], "o-", ms=4, lw=1, color=colors[family], label=label)
        for kind, label, marker in (("stein", "Stein head", "s"), ("regressed", "regressed head", "D")):
            if kind in rows:
                time_ = rows[kind]["gradient"] / rows["hutchinson-1"]["gradient"]
                hollow = "none" if kind == "regressed" else colors[kind]
                ax.plot(time_, rows[kind]["rmse"], marker, ms=6, color=colors[kind], mfc=hollow, label=label)
        ax.axvline(
            rows["exact"]["gradient"] / rows["hutchinson-1"]["gradient"],
            color="0.6",
            lw=1,
            ls="--",
            label="exact (no error)",
        )
        ax.set(xscale="log", yscale="log", title=f"{name}, D = {cells[name]['dim']}")
        ax.set_xticks([0.5, 1, 2, 4, 8, 16, 32])
        ax.set_xlim(0.3, 45.0)
        ax.tick_params(labelbottom=True)
        ax.margins(y=0.1)
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(FormatStrFormatter("%g"))
            axis.set_minor_locator(NullLocator())
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    figure.supxlabel("time of value and gradient (one probe of Hutchinson's = 1)")
    figure.supylabel("RMSE of log_prob, nats")
    axes.flat[0].legend()
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)
    plt.close(figure)
