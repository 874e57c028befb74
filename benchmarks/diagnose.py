"""How often does a diagnosis find fault with a sound fit, and how often does it miss a planted fault?

    python benchmarks/diagnose.py            # about half an hour on two cores, plus the fits; resumes
    python benchmarks/diagnose.py --quick    # two of the sound fits, and one fault
    python benchmarks/diagnose.py --cached   # write only the tables

Five sound fits are diagnosed forty times each, with fresh keys and, for simulated data, fresh held-out rows. Then one of them is
diagnosed ten times with each of six planted faults. Writes the tables of docs/diagnoses.md.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from fits import mixture_flow
from numpyro.distributions import constraints
from sklearn.datasets import load_breast_cancer
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

SOUND, FAULTY, HELD = 40, 10, 1000


class Wavy(fd.divergences.AbstractDivergence):
    """A divergence plus a wave and a constant."""

    inner: fd.divergences.AbstractDivergence
    size: jax.Array
    constant: jax.Array

    def __call__(self, model: Any, time: Any, state: Any, context: Any) -> tuple[Any, Any]:
        velocity, rate = self.inner(model, time, state, context)
        return velocity, rate + self.size * jnp.sin(1.5 * state[0] + 0.3) + self.constant


def diagnosed(density: Any, draw: Callable[[int], dict[str, Any]], count: int) -> dict:
    """Count the diagnoses that find a fault, by part, and time them. The first one includes compilation."""
    found: Counter[str] = Counter()
    alarms, seconds = 0, []
    for seed in range(count):
        started = time.perf_counter()
        diagnosis = fd.diagnose(jr.key(seed), density, progress=False, **draw(seed))
        seconds.append(time.perf_counter() - started)
        alarms += bool(diagnosis.bad)
        found.update({finding.id.split(".")[0] for finding in diagnosis.bad})
    return {
        "diagnoses": count,
        "alarms": alarms,
        "where": dict(found),
        "first, s": seconds[0],
        "next, s": float(np.median(seconds[1:])),
    }


def mixture(dim: int) -> dict:
    """Diagnose a mixture of the accuracy benchmark."""
    truth, density, _ = mixture_flow(dim)
    return diagnosed(density, lambda seed: {"samples": truth.sample(HELD, 5000 + seed)}, SOUND)


def amortized() -> dict:
    """Diagnose the two-dimensional mixture, distilled into one network."""
    truth, density, _ = mixture_flow(2)
    fast, _ = fd.distill(jr.key(1), density)
    return diagnosed(fast, lambda seed: {"samples": truth.sample(HELD, 5000 + seed)}, SOUND)


def conditional() -> dict:
    """Diagnose a conditional density of two skewed, heteroscedastic columns given a parameter."""

    def simulate(seed: int, count: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        theta, noise = rng.normal(size=(count, 1)), rng.normal(size=(count, 2))
        first = theta[:, 0] + 0.5 * noise[:, 0]
        second = 0.5 * first**2 + np.exp(0.3 * theta[:, 0]) * 0.5 * noise[:, 1]
        return {"samples": np.stack([first, second], 1), "context": theta}

    rows = simulate(0, 20_000)
    density, _ = fd.fit_flow(jr.key(0), rows["samples"], rows["context"])
    return diagnosed(density, lambda seed: simulate(5000 + seed, HELD), SOUND)


def tumours() -> dict:
    """Diagnose five columns of breast cancer. One half is learned, the other is held out, the same rows each time."""
    columns = ["mean radius", "mean texture", "mean smoothness", "mean compactness", "mean symmetry"]
    table = np.random.default_rng(0).permutation(load_breast_cancer(as_frame=True).data[columns].to_numpy())
    density, _ = fd.fit_flow(jr.key(0), table[:285], support=constraints.positive)
    return diagnosed(density, lambda _: {"samples": table[285:]}, SOUND)


def fault(name: str) -> dict:
    """Diagnose the two-dimensional mixture with one planted fault."""
    truth, sound, _ = mixture_flow(2)
    density, moved = sound, 0.0
    match name:
        case "a bias of 0.3 nats":
            head = sound.divergence.head
            rate = 0.3 / (0.5 * math.pi)
            density = sound.with_divergence(
                fd.SteinDivergence(eqx.tree_at(lambda h: h.offset, head, head.offset.at[0].add(rate)))
            )
        case "errors of 0.5 nats without a bias":
            own = sound.sample(jr.key(1), (4000,))

            def waves(size: float, constant: float) -> fd.FlowDensity:
                return sound.with_divergence(Wavy(sound.divergence, jnp.asarray(size), jnp.asarray(constant)))

            error = np.asarray(waves(1.0, 0.0).log_prob(own) - sound.log_prob(own), np.float64)
            size = 0.5 / error.std()
            density = waves(size, size * error.mean() / (0.5 * math.pi))
        case "2 solver steps":
            density = sound.with_solver(fd.FixedStep(2))
        case "a head without tails":
            objective = fd.objectives.LangevinStein(tails=0.0)
            data = truth.sample(20_000, 1000)
            density = sound.with_divergence(fd.fit_divergence(jr.key(2), sound.model, data, objective=objective)[0])
        case "samples of another distribution":
            moved = 0.5
        case "an under-trained flow":
            density, _ = fd.fit_flow(jr.key(3), truth.sample(20_000, 1000), training=fd.Training(steps=100))
    return diagnosed(density, lambda seed: {"samples": truth.sample(HELD, 5000 + seed) + moved}, FAULTY)


FITS: dict[str, Callable[[], dict]] = {
    "mixture, D = 2": lambda: mixture(2),
    "mixture, D = 8": lambda: mixture(8),
    "amortized mixture, D = 2": amortized,
    "conditional, D = 2": conditional,
    "breast cancer, D = 5": tumours,
}
FAULTS = (
    "a bias of 0.3 nats",
    "errors of 0.5 nats without a bias",
    "2 solver steps",
    "a head without tails",
    "samples of another distribution",
    "an under-trained flow",
)


def main() -> None:
    """Compute the cells that are missing and write the tables."""
    jobs = FITS | {name: lambda name=name: fault(name) for name in FAULTS}
    cells = cells_of(__doc__, "diagnose", jobs, quick=("mixture, D = 2", "breast cancer, D = 5", "a bias of 0.3 nats"))

    def table(names: Any, first: str, last: str) -> str:
        rows = [
            [
                name,
                f"{cells[name]['alarms']} of {cells[name]['diagnoses']}",
                ", ".join(f"{part} ({count})" for part, count in sorted(cells[name]["where"].items())) or "none",
                f"{cells[name]['first, s']:.0f}",
                f"{cells[name]['next, s']:.1f}",
            ]
            for name in names
            if name in cells
        ]
        return markdown([first, last, "where", "first diagnosis, s", "later diagnoses, s"], rows)

    missing = [name for name in jobs if name not in cells]
    text = "\n\n".join(
        [
            "## Sound fits",
            table(FITS, "fit", "diagnoses that find a fault"),
            "## Planted faults, in the two-dimensional mixture",
            table(FAULTS, "fault", "diagnoses that find it"),
            provenance("python benchmarks/diagnose.py", cells.values()),
            *([f"Not measured yet: {', '.join(missing)}."] if missing else []),
        ]
    )
    replace_block(Path("docs/diagnoses.md"), "diagnoses", text)


if __name__ == "__main__":
    main()
