"""How good is each way to have a divergence, and what does it cost? Mixtures, digits and patches; flows, diffusions, a CNF.

    python benchmarks/divergence.py                   # all cells: about three hours on two cores; resumes
    python benchmarks/divergence.py --only 'flow-*'   # a part of them
    python benchmarks/divergence.py --quick           # only the flow in two dimensions
    python benchmarks/divergence.py --cached          # only the page, from the cells that are there

Writes the tables and the picture of docs/which-divergence.md.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import fits
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from accuracy import log_prob
from mixtures import Mixture
from noise_predictor import BETAS, train
from pictures import digits, patches, without_mean
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

PAGE, PICTURE = Path("docs/which-divergence.md"), Path("docs/images/divergences.png")
KEYS, ROUNDS, BATCH = 4, 7, 100
"""Keys over which the errors of random estimators are averaged; rounds of timing; points in a timed batch."""

Rows = tuple[np.ndarray, np.ndarray]


def mixture(dim: int, points: int = 1000) -> Rows:
    """20,000 training rows and fresh points of a mixture."""
    return Mixture(dim, 0).sample(20_000, 1000), Mixture(dim, 0).sample(points, 2000)


def standardised(dim: int) -> Rows:
    """The same with columns of mean 0 and standard deviation 1, as DDPM takes them."""
    data, points = mixture(dim)
    return (data - data.mean(0)) / data.std(0), (points - data.mean(0)) / data.std(0)


def flow(name: str) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A flow with its divergence distilled, by defaults, which other benchmarks and the ablation may share."""
    return lambda data: fits.flow(name, data)[0]


def diffusion(path: fd.AbstractPath) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A diffusion on a path, likewise."""
    return lambda data: fd.fit_diffusion(jr.key(0), data, path=path)[0]


def cnf(data: np.ndarray) -> fd.FlowDensity:
    """A continuous normalizing flow by maximum likelihood: a smaller network and few steps, which are dear."""
    network = fd.ResidualMLP(jr.key(1), data.shape[1], width=128, depth=1)
    density, _ = fd.fit_likelihood(jr.key(0), data, network=network, divergence=fd.ExactDivergence(), steps=300)
    learned, _ = fd.fit_divergence(jr.key(2), density.model, data)
    return density.with_divergence(learned)


def pretrained(*, features: bool) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A noise predictor of flax under the DDPM convention, wrapped, with or without its hidden layer, and distilled."""

    def fit(data: np.ndarray) -> fd.FlowDensity:
        network = train(data)

        def predict(step: jax.Array, x: jax.Array, context: None) -> Any:
            hidden = network.hidden(x, step)
            return (network.outward(hidden), hidden) if features else network.outward(hidden)

        model = fd.from_ddpm(predict, data.shape[1:], betas=BETAS)
        divergence, _ = fd.fit_divergence(jr.key(0), model, data)
        return fd.FlowDensity(model, divergence=divergence)

    return fit


def unet(steps: int, batch_size: int, **shape: Any) -> Callable[[np.ndarray], fd.FlowDensity]:
    """A convolutional flow on images, with fewer and smaller steps than the default."""

    def fit(data: np.ndarray) -> fd.FlowDensity:
        network = fd.UNet(jr.key(1), data.shape[1:], **shape)
        return fd.fit_flow(jr.key(0), data, network=network, steps=steps, batch_size=batch_size)[0]

    return fit


CELLS: dict[str, tuple[Callable[[], Rows], Callable[[np.ndarray], fd.FlowDensity]]] = {
    **{f"flow-{dim}": (lambda dim=dim: mixture(dim), flow(f"mixture-{dim}-6")) for dim in (2, 8, 32)},
    **{f"VP-{dim}": (lambda dim=dim: mixture(dim), diffusion(fd.VariancePreserving())) for dim in (2, 8, 32)},
    **{f"VE-{dim}": (lambda dim=dim: mixture(dim), diffusion(fd.VarianceExploding())) for dim in (2, 8, 32)},
    **{f"CNF-{dim}": (lambda dim=dim: mixture(dim), cnf) for dim in (2, 8, 32)},
    "DDPM-8": (lambda: standardised(8), pretrained(features=True)),
    "DDPM-8, no features": (lambda: standardised(8), pretrained(features=False)),
    "digits": (digits, flow("digits")),
    "patches-63": (lambda: tuple(map(without_mean, patches(8, 20_000, 1000, grey=True))), flow("patches-63")),
    "patches-8x8x1": (lambda: patches(8, 20_000, 1000, grey=True), flow("patches-8x8x1")),
    "flow-128": (lambda: mixture(128, 500), flow("mixture-128-6")),
}
"""Data, and what is fitted to them, with the exact divergence as the reference at every point."""
IMAGES: dict[str, tuple[Callable[[], Rows], Callable[[np.ndarray], fd.FlowDensity]]] = {
    "patches-16x16x3": (lambda: patches(16, 20_000, 64, grey=False), unet(2000, 32, width=16)),
    "patches-32x32x3": (lambda: patches(32, 20_000, 64, grey=False), unet(1500, 16, width=16, scales=4)),
}
"""The same where the exact divergence can be had at few points only."""
OBJECTIVES: dict[str, tuple[fd.AbstractObjective, int]] = {
    "plain, with the model's score": (fd.ScoreStein(), 512),
    "kernels, rho = 1": (fd.LangevinStein(rho=1.0), 512),
    "kernels, rho = 0.3": (fd.LangevinStein(rho=0.3), 512),
    "kernels, rho = 0.1": (fd.LangevinStein(rho=0.1), 512),
    "regression on Hutchinson": (fd.HutchinsonRegression(), 512),
    "regression, three times the draws": (fd.HutchinsonRegression(), 1536),
    "rho = 0.1, about the data": (fd.LangevinStein(source="data"), 512),
    "rho = 0.1, about model samples": (fd.LangevinStein(source="model"), 512),
    "rho = 0.1, no tails": (fd.LangevinStein(tails=0.0), 512),
}
"""Rows of the ablation: what a head of the same flow is trained on, and with how many draws in a step."""
LEVELS = {"digits": 17, "patches-8x8x1": 256}
"""Levels of the data that were dequantised."""
REGRESSED = ("flow-2", "flow-8", "flow-32", "digits", "patches-63")
"""Cells in which a second head is regressed on Hutchinson's estimates."""
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
"""Rows of the table."""


def random_estimators(key: jax.Array) -> dict[str, fd.AbstractDivergence]:
    """Those with probes, from one key."""
    return {
        "hutchinson-1": fd.HutchinsonDivergence(key, 1),
        "hutchinson-4": fd.HutchinsonDivergence(key, 4),
        "hutchinson-16": fd.HutchinsonDivergence(key, 16),
        "hutch++-3": fd.HutchPlusPlusDivergence(key, 3),
        "hutch++-15": fd.HutchPlusPlusDivergence(key, 15),
    }


def errors(difference: np.ndarray) -> dict:
    """What the columns of the table are made of, over any axes."""
    return {
        "bias": float(difference.mean()),
        "sd": float(difference.std()),
        "rmse": float(np.sqrt(np.mean(np.square(difference)))),
        "max": float(np.abs(difference).max()),
    }


def random_errors(difference: Callable[[fd.AbstractDivergence], np.ndarray]) -> dict[str, dict]:
    """`errors` of each estimator with probes, over several keys."""
    drawn = [random_estimators(key) for key in jr.split(jr.key(7), KEYS)]
    return {kind: errors(np.stack([difference(each[kind]) for each in drawn])) for kind in drawn[0]}


def costs(rivals: Mapping[str, fd.FlowDensity], points: np.ndarray) -> dict[str, dict]:
    """Milliseconds of log_prob and of value and gradient, medians of rounds in turn, and XLA's working memory."""
    batch = jnp.asarray(points, float)
    functions = {
        "log_prob": jax.jit(lambda d, x: jnp.sum(d.log_prob(x))),
        "gradient": jax.jit(jax.value_and_grad(lambda d, x: jnp.sum(d.log_prob(x)), argnums=1)),
    }
    result: dict[str, dict] = {name: {} for name in rivals}
    for what, function in functions.items():
        compiled = {name: function.lower(rival, batch).compile() for name, rival in rivals.items()}
        times: dict[str, list[float]] = {name: [] for name in rivals}
        for round_ in range(ROUNDS + 1):
            for name, rival in rivals.items():
                started = time.perf_counter()
                jax.block_until_ready(compiled[name](rival, batch))
                if round_:
                    times[name].append(time.perf_counter() - started)
        for name in rivals:
            result[name][what] = 1e3 * float(np.median(times[name]))
            result[name][f"{what} memory"] = compiled[name].memory_analysis().temp_size_in_bytes
    return result


def compare(name: str) -> dict:
    """Fit one model and compare all estimators on held-out points, in accuracy, time and memory."""
    (data, points), fit = CELLS[name][0](), CELLS[name][1]
    learned = fit(data)
    exact = learned.with_divergence(fd.ExactDivergence())
    reference = log_prob(exact, points, 50)
    rivals: dict[str, dict] = {"exact": errors(np.zeros_like(reference))}
    rivals |= random_errors(lambda estimator: log_prob(exact.with_divergence(estimator), points, 250) - reference)
    heads = {"stein": learned}
    if name in REGRESSED:
        regressed, _ = fd.fit_divergence(jr.key(3), learned.model, data, objective=fd.HutchinsonRegression())
        heads["regressed"] = learned.with_divergence(regressed)
    for kind, density in heads.items():
        rivals[kind] = errors(log_prob(density, points, 250) - reference)
    timed = {"stein": learned, "exact": exact} | {
        kind: exact.with_divergence(estimator) for kind, estimator in random_estimators(jr.key(8)).items()
    }
    few = points[: BATCH if learned.model.dim < 64 else 20]
    for kind, cost in costs(timed, few).items():
        rivals[kind] |= cost
    if "regressed" in heads:
        rivals["regressed"] |= {what: value for what, value in rivals["stein"].items() if what not in errors(reference)}
    return {
        "rows": rivals,
        "dim": learned.model.dim,
        "points": len(points),
        "levels": LEVELS.get(name),
        "held out": float(reference.mean()),
        "trained on": float(log_prob(exact, data[: len(points)], 50).mean()),
    }


def compare_images(name: str) -> dict:
    """The same for images: the divergence at eight angles on two points against the exact one, and bits per dimension."""
    (data, points), fit = IMAGES[name][0](), IMAGES[name][1]
    learned = fit(data)
    model = learned.model
    assert isinstance(model, fd.AbstractCircle)
    angles = jnp.linspace(0.0, 0.5 * jnp.pi, 10)[1:-1]
    whiten = jax.vmap(lambda x: model.scaling.whiten(x)[0])
    held_out = whiten(jnp.asarray(points[:2], float))
    noise = jr.normal(jr.key(5), held_out.shape)

    def at(divergence: fd.AbstractDivergence) -> np.ndarray:
        """Divergences, shape `(angles, points)`."""
        one = jax.jit(lambda d, m, phi, x, e: d(m, phi, jnp.sin(phi) * x + jnp.cos(phi) * e, jnp.zeros(0))[1])
        pairs = [(phi, x, e) for phi in angles for x, e in zip(held_out, noise, strict=True)]
        return np.asarray([one(divergence, model, *pair) for pair in pairs], np.float64).reshape(len(angles), -1)

    reference = at(Blockwise())
    rows = {"exact": errors(np.zeros_like(reference)), "stein": errors(at(learned.divergence) - reference)}
    rows |= random_errors(lambda estimator: at(estimator) - reference)
    timed = {"stein": learned} | {
        kind: learned.with_divergence(estimator) for kind, estimator in random_estimators(jr.key(8)).items()
    }
    for kind, cost in costs(timed, points[:4]).items():
        rows[kind] |= cost
    bits = fd.bits_per_dimension(log_prob(learned, points, 8), model.dim, unit=1 / 256)
    return {
        "rows": rows,
        "dim": model.dim,
        "points": reference.size,
        "spread": float(reference.std()),
        "bits": float(bits.mean()),
        "bits se": float(bits.std() / np.sqrt(len(bits))),
    }


class Blockwise(fd.AbstractDivergence):
    """The exact divergence with the basis in blocks, for as many dimensions as memory would not hold at once."""

    def __call__(self, model: Any, time: Any, state: Any, context: Any) -> tuple[Any, Any]:
        velocity, tangent = jax.linearize(lambda y: model.velocity(time, y, context), state)

        def entry(i: jax.Array) -> jax.Array:
            return tangent(jnp.zeros_like(state).at[i].set(1.0))[i]

        return velocity, jnp.sum(jax.lax.map(entry, jnp.arange(state.size), batch_size=64))


def ablation(name: str) -> dict:
    """Heads of one flow trained on different objectives for 3,000 steps: errors on held-out points and at 4x their scale."""
    data, points = CELLS[name][0]()
    density = CELLS[name][1](data).with_divergence(fd.ExactDivergence())
    centre = data.mean(0)
    places = {"1x": points, "4x": centre + 4.0 * (points - centre)}
    references = {scale: log_prob(density, at, 50) for scale, at in places.items()}
    rows = {}
    for objective_name, (objective, draws) in OBJECTIVES.items():
        learned, report = fd.fit_divergence(
            jr.key(1), density.model, data, objective=objective, steps=3000, batch_size=draws
        )
        rows[objective_name] = {
            scale: errors(log_prob(density.with_divergence(learned), at, 250) - references[scale])
            for scale, at in places.items()
        } | {"seconds": report.histories["divergence"].seconds}
        print(objective_name, rows[objective_name], flush=True)
    return {"rows": rows, "points": len(points)}


def tables(cells: Mapping[str, dict]) -> str:
    """A table for each cell that there is, and one of all ratios, as Markdown."""
    found = {name: cells[name] for name in (*CELLS, *IMAGES) if name in cells}
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
        header = [name, "bias", "sd", "RMSE", "max", "log_prob", "with gradient", "memory, MiB"]
        parts.append(f"### {name}\n\n{note(c)}\n\n{markdown(header, table)}")
    for name in ("flow-8", "digits"):
        if f"ablation-{name}" in cells:
            c = cells[f"ablation-{name}"]
            table = [
                [label]
                + [f"{row['1x'][k]:{'+' if k == 'bias' else ''}.3f}" for k in ("bias", "rmse", "max")]
                + [f"{row['4x'][k]:{'+' if k == 'bias' else ''}.2f}" for k in ("bias", "rmse")]
                + [f"{row['seconds'] / c['rows']['kernels, rho = 0.1']['seconds']:.2f}"]
                for label, row in c["rows"].items()
            ]
            header = ["trained on", "bias", "RMSE", "max", "bias at 4x", "RMSE at 4x", "training time"]
            parts.append(f"### What a head is trained on: {name}\n\n{markdown(header, table)}")
    missing = [name for name in jobs() if name not in cells]
    if missing:
        parts.append(f"This table is partial: {', '.join(missing)} have not been run.")
    return "\n\n".join([*parts, provenance("python benchmarks/divergence.py", cells.values())])


def note(c: dict) -> str:
    """What was compared in a cell."""
    if "bits" in c:
        return (
            f"{c['dim']} dimensions: the divergence itself at eight angles of two held-out points, in nats per radian (its own "
            f"standard deviation there is {c['spread']:.1f}); times of `log_prob` of four. The model has "
            f"{c['bits']:.3f} +- {c['bits se']:.3f} bits per dimension on held-out patches, with the head."
        )
    text = f"{c['dim']} dimensions, `log_prob` of {c['points']} held-out points in nats"
    if c["levels"] is None:
        return f"{text}."
    bits = fd.bits_per_dimension(c["held out"], c["dim"], unit=1 / c["levels"])
    return f"{text}. The model has {bits:.3f} bits per dimension there, with the exact divergence."


def picture(cells: Mapping[str, dict]) -> None:
    """Error against time of value and gradient, both beside one probe of Hutchinson's, a panel for each of six problems."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    shown = [name for name in ("flow-2", "flow-8", "flow-32", "digits", "patches-63", "flow-128") if name in cells]
    columns, rows_ = min(3, len(shown)), -(-len(shown) // 3)
    figure, axes = plt.subplots(
        rows_,
        columns,
        figsize=(0.4 + 2.9 * columns, 0.4 + 2.6 * rows_),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    colours = {"hutchinson": "#4477aa", "hutch++": "#228833", "regressed": "#ccbb44", "stein": "#cc3311"}
    for ax, name in zip(axes.flat, shown, strict=False):
        rows = cells[name]["rows"]
        for family, label in (("hutchinson", "Hutchinson"), ("hutch++", "Hutch++")):
            # With as many products as dimensions Hutch++ is exact, and has no place on the axis.
            kinds = [kind for kind in NAMES if kind.split("-")[0] == family and rows[kind]["rmse"] > 1e-4]
            times = [rows[kind]["gradient"] / rows["hutchinson-1"]["gradient"] for kind in kinds]
            ax.plot(times, [rows[kind]["rmse"] for kind in kinds], "o-", ms=4, lw=1, color=colours[family], label=label)
        for kind, label, marker in (("regressed", "regressed head", "D"), ("stein", "Stein head", "s")):
            if kind in rows:
                time_ = rows[kind]["gradient"] / rows["hutchinson-1"]["gradient"]
                ax.plot(time_, rows[kind]["rmse"], marker, ms=6, color=colours[kind], label=label)
        ax.axvline(
            rows["exact"]["gradient"] / rows["hutchinson-1"]["gradient"],
            color="0.6",
            lw=1,
            ls="--",
            label="exact (no error)",
        )
        ax.set(xscale="log", yscale="log", title=f"{name}, D = {cells[name]['dim']}")
        ax.set_xticks([1, 2, 4, 8, 16, 32])
        ax.set_xlim(0.5)
        ax.xaxis.set_major_formatter(ScalarFormatter())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes.flat[len(shown) :]:
        ax.set_visible(False)
    figure.supxlabel("time (one probe = 1)", fontsize=10)
    figure.supylabel("RMSE of log_prob, nats", fontsize=10)
    axes.flat[0].legend(frameon=False, fontsize=8)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    plt.close(figure)


def jobs() -> dict[str, Callable[[], dict]]:
    """Every cell by name."""
    return (
        {name: (lambda name=name: compare(name)) for name in CELLS}
        | {f"ablation-{name}": (lambda name=name: ablation(name)) for name in ("flow-8", "digits")}
        | {name: (lambda name=name: compare_images(name)) for name in IMAGES}
    )


def main() -> None:
    """Compute the cells that are missing and write tables and picture."""
    cells = cells_of(__doc__, "divergence", jobs(), quick=("flow-2",))
    replace_block(PAGE, "divergences", tables(cells))
    picture(cells)


if __name__ == "__main__":
    main()
