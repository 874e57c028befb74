"""How accurate are the learned density and its learned divergence? Twisted chains in 2, 8 and 32 dimensions.

No mixture of a few Gaussians is close to a twisted chain, so the network has to learn a departure from its reference, and the
head its divergence. All fits use the defaults, except that the divergence is learned in every dimension.

    python benchmarks/accuracy.py                  # all cells: about an hour on two cores; resumes
    python benchmarks/accuracy.py --only '*-8-*'   # only some of them
    python benchmarks/accuracy.py --quick          # two dimensions, one seed
    python benchmarks/accuracy.py --cached         # write only the tables, from the cells computed so far

Writes docs/accuracy.md and the table in README.md.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from tables import cells_of, markdown, provenance, replace_block, wrapped
from twisted import TwistedChain

import flowdensity as fd

PAGE = Path("docs/accuracy.md")
ONE_RUN = 8, 0
"""Dimension and seed of the two cells that were fitted in one run, so that their times can be compared."""
DIMENSIONS, SEEDS = (2, 8, 32), (0, 1, 2)
ROWS, POINTS, FAR_POINTS, CHUNK = 20_000, 4_000, 1_000, 500
INTRODUCTION = wrapped(
    "This page shows how close a learned density is to the true density, and how close its `log_prob` with the learned "
    "divergence is to that with the exact divergence."
)


def log_prob(density: fd.FlowDensity, points: np.ndarray, chunk: int = CHUNK) -> np.ndarray:
    """Evaluate log_prob in chunks, so that the exact divergence fits in memory."""
    chunks = [density.log_prob(jnp.asarray(points[i : i + chunk], float)) for i in range(0, len(points), chunk)]
    return np.concatenate([np.asarray(values, np.float64) for values in chunks])


def ours(dim: int, seed: int) -> dict:
    """Fit with defaults and compare the learned log_prob with the exact one, near and far."""
    law = TwistedChain(dim)
    data = law.rows(ROWS, 1000 + seed)
    density, report = fd.fit_flow(jr.key(seed), data, divergence=fd.objectives.LangevinStein())
    print(report.summary(), flush=True)
    exact = density.with_divergence(fd.ExactDivergence())
    points, center = law.rows(POINTS, 2000 + seed), data.mean(0)
    result: dict = {"seconds": sum(report.seconds.values())}
    for scale in (1, 2, 4):
        at = center + scale * (points if scale == 1 else points[:FAR_POINTS]) - scale * center
        reference = log_prob(exact, at)
        error = log_prob(density, at) - reference
        result[f"{scale}x"] = {
            "bias": error.mean(),
            "sd": error.std(),
            "rmse": np.sqrt(np.mean(error**2)),
            "max": np.abs(error).max(),
            "p99": np.quantile(error, 0.99),
        }
        if scale == 1:
            gap = np.asarray(law.log_prob(at), np.float64) - reference
            result["kl"], result["kl se"] = gap.mean(), gap.std() / np.sqrt(POINTS)
            squares = [
                np.mean((log_prob(density.with_divergence(fd.HutchinsonDivergence(key)), at) - reference) ** 2)
                for key in jr.split(jr.key(seed + 7), 4)
            ]
            result["hutchinson"] = np.sqrt(np.mean(squares))
    if dim == 2:
        result["integral"] = integral(density, data)
    return jax.tree.map(float, result)


def integral(density: fd.FlowDensity, data: np.ndarray) -> float:
    """Integral of exp(log_prob) by the trapezoidal rule, on the range of the data plus half its width on each side."""
    low, high = data.min(0), data.max(0)
    margin = 0.5 * (high - low)
    axes = [np.linspace(a, b, 300) for a, b in zip(low - margin, high + margin, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    values = np.exp(log_prob(density, grid.reshape(-1, 2))).reshape(300, 300)
    return np.trapezoid(np.trapezoid(values, axes[1], axis=1), axes[0])


def flowjax(dim: int, seed: int) -> dict:
    """flowjax's masked autoregressive rational-quadratic flow, with its default fit, on standardized columns."""
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow
    from flowjax.train import fit_to_data

    law = TwistedChain(dim)
    data = law.rows(ROWS, 1000 + seed)
    mean, sd = data.mean(0), data.std(0)
    flow_key, fit_key = jr.split(jr.key(seed))
    flow = masked_autoregressive_flow(
        flow_key, base_dist=Normal(jnp.zeros(dim)), transformer=RationalQuadraticSpline(knots=8, interval=4)
    )
    started = time.perf_counter()
    flow, _ = fit_to_data(fit_key, flow, jnp.asarray((data - mean) / sd, float), show_progress=False)
    seconds = time.perf_counter() - started
    points = law.rows(POINTS, 2000 + seed)
    density = np.asarray(flow.log_prob(jnp.asarray((points - mean) / sd, float)), np.float64) - np.log(sd).sum()
    gap = np.asarray(law.log_prob(points), np.float64) - density
    return {"kl": float(gap.mean()), "kl se": float(gap.std() / np.sqrt(POINTS)), "seconds": seconds}


def report(cells: dict[tuple[int, int], dict], peers: dict[tuple[int, int], dict], command: str) -> str:
    """The tables as Markdown: medians over seeds, then every cell."""
    dims = sorted({dim for dim, _ in cells})
    seeds = {dim: [s for d, s in cells if d == dim] for dim in dims}

    def median(dim: int, get: Callable[[dict], float]) -> float:
        return float(np.median([get(cells[dim, s]) for s in seeds[dim]]))

    header = [
        "D",
        "KL to the truth",
        "flowjax MAF",
        "bias",
        "RMSE",
        "Hutchinson",
        "ratio",
        "99 % at 4x",
        "integral",
    ]
    rows = []
    for dim in dims:
        peer = [peers[dim, s]["kl"] for s in seeds[dim] if (dim, s) in peers]
        rows.append(
            [
                str(dim),
                f"{median(dim, lambda c: c['kl']):.4f}",
                f"{np.median(peer):.4f}" if peer else "",
                f"{median(dim, lambda c: c['1x']['bias']):+.4f}",
                f"{median(dim, lambda c: c['1x']['rmse']):.3f}",
                f"{median(dim, lambda c: c['hutchinson']):.2f}",
                f"{median(dim, lambda c: c['hutchinson'] / c['1x']['rmse']):.1f}",
                f"{median(dim, lambda c: c['4x']['p99']):+.2f}",
                f"{median(dim, lambda c: c['integral']):.4f}" if dim == 2 else "",
            ]
        )
    detail_header = ["D, seed", "KL", "se", "flowjax", "bias", "sd", "RMSE", "max", "Hutchinson"]
    detail_header += [
        "bias 2x",
        "RMSE 2x",
        "max 2x",
        "bias 4x",
        "RMSE 4x",
        "max 4x",
        "99 % at 4x",
        "integral",
        "s to fit",
        "flowjax, s",
    ]
    detail = []
    for (dim, seed), c in sorted(cells.items()):
        row = [f"{dim}, {seed}", f"{c['kl']:.4f}", f"{c['kl se']:.4f}"]
        row.append(f"{peers[dim, seed]['kl']:.4f}" if (dim, seed) in peers else "")
        row += [f"{c['1x'][k]:{'+' if k == 'bias' else ''}.4f}" for k in ("bias", "sd", "rmse", "max")]
        row.append(f"{c['hutchinson']:.3f}")
        for scale in ("2x", "4x"):
            row += [f"{c[scale]['bias']:+.3f}", f"{c[scale]['rmse']:.3f}", f"{c[scale]['max']:.2f}"]
        row += [
            f"{c['4x']['p99']:+.2f}",
            f"{c['integral']:.4f}" if "integral" in c else "",
            *(f"{each['seconds']:.0f}" if "seconds" in each else "" for each in (c, peers.get((dim, seed), {}))),
        ]
        detail.append(row)
    counts = sorted({sum(d == dim for d, _ in kind) for kind in (cells, peers) for dim in dims})
    parts = [
        wrapped(
            f"Flows are fitted to {ROWS:,} rows of twisted chains with the defaults, except that the divergence is learned in "
            "two dimensions too. The chains are "
            "$x_j = 0.5 z_j + 0.5 \\sin 2 x_{j-1}$ in three regimes of shift and scale. No mixture of a few Gaussians is "
            f"close to them. The flows are evaluated at {POINTS:,} fresh points, at {FAR_POINTS:,} points at 2 times the scale "
            f"of the data, and at {FAR_POINTS:,} points at 4 times. Entries are medians over "
            f"{' or '.join(map(str, counts))} seeds."
        ),
        "- KL, bias and RMSE are in nats. Bias and RMSE are those of the difference: `log_prob` with the learned divergence "
        "minus `log_prob` with the exact divergence. `flowjax MAF` is the KL of flowjax's masked autoregressive flow.\n"
        "- `Hutchinson` is the RMSE with Hutchinson's estimator and one probe. `ratio` is `Hutchinson` divided by `RMSE`.\n"
        "- `99 % at 4x` is the 99th percentile, at 4 times the scale of the data, of `log_prob` with the learned divergence "
        "minus `log_prob` with the exact one. It shows where a head is wrong far from the data.\n"
        "- `integral` is the integral of the density by quadrature, in two dimensions.",
        markdown(header, rows),
        provenance(command, [*cells.values(), *peers.values()]),
        "## Every cell",
        markdown(detail_header, detail),
    ]
    own, peer = cells.get(ONE_RUN, {}), peers.get(ONE_RUN, {})
    if "seconds" in own and "seconds" in peer:
        parts += [
            "## Time of a fit",
            wrapped(
                f"In {ONE_RUN[0]} dimensions, both packages were fitted in one run on the same cores. A flow and its divergence "
                f"took {own['seconds']:.0f} s and flowjax took {peer['seconds']:.0f} s, which is "
                f"{own['seconds'] / peer['seconds']:.1f} times as long. The KL of the flow is {own['kl'] / peer['kl']:.2f} "
                "times that of flowjax. The times of other cells were measured at other times and cannot be compared."
            ),
        ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Compute the cells that are missing and write the tables."""
    names = {
        f"{name}-{dim}-{seed}": (name, dim, seed)
        for name in ("flowdensity", "flowjax")
        for seed in SEEDS
        for dim in DIMENSIONS
    }
    kinds = {"flowdensity": ours, "flowjax": flowjax}
    jobs = {name: partial(kinds[kind], dim, seed) for name, (kind, dim, seed) in names.items()}
    found: dict[str, dict[tuple[int, int], dict]] = {kind: {} for kind in kinds}
    for name, each in cells_of(__doc__, "accuracy", jobs, quick=("flowdensity-2-0", "flowjax-2-0")).items():
        kind, *cell = names[name]
        found[kind][cell[0], cell[1]] = each
    text = report(found["flowdensity"], found["flowjax"], "python benchmarks/accuracy.py")
    print(text)
    PAGE.write_text(f"# How accurate is the log density?\n\n{INTRODUCTION}\n\n{text}")
    replace_block(Path("README.md"), "accuracy", text.split("\n\n## Every cell")[0])


if __name__ == "__main__":
    main()
