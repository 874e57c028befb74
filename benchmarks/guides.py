"""How close does a flow come to the evidence as a guide, compared with numpyro's normalizing flows?

    python benchmarks/guides.py            # about half an hour on two cores; resumes
    python benchmarks/guides.py --cached   # write only the table, from the cells computed so far

Writes the table of docs/guides.md.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import schools
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoIAFNormal
from numpyro.infer.elbo import ELBO
from tables import cells_of, markdown, provenance, replace_block

import flowdensity as fd

PARTICLES = 8
STEPS = 3000
SEEDS = 2
CHUNK = 100
DRAWS = 10_000
FINE = fd.FixedStep(32)
"""Solver for the final ELBO of a flow, with four times the training steps, because a coarse solver would overestimate it."""


def funnel() -> None:
    """Neal's funnel in ten dimensions. Its evidence is 1, so the ELBO is at most 0."""
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    numpyro.sample("x", dist.Normal(jnp.zeros(9), jnp.exp(v / 2.0)).to_event(1))


MODELS: dict[str, Callable[[], None]] = {"funnel": funnel, "eight schools": schools.centered}


class Contender(NamedTuple):
    """A guide and its training objective."""

    guide: Callable[[Any], Any]
    elbo: ELBO


CONTENDERS = {
    "AutoFlow": Contender(fd.AutoFlow, Trace_ELBO(PARTICLES)),
    "AutoFlow, path gradient": Contender(fd.AutoFlow, fd.PathGradientELBO(PARTICLES)),
    "AutoIAFNormal": Contender(AutoIAFNormal, Trace_ELBO(PARTICLES)),
    "AutoBNAFNormal": Contender(AutoBNAFNormal, Trace_ELBO(PARTICLES)),
}


def train(model: Callable[[], None], contender: Contender, steps: int, seed: int) -> tuple[dict, float]:
    """ELBO after `steps` steps with its standard error, and seconds per step without compilation."""
    schedule = optax.cosine_decay_schedule(2e-3, steps, alpha=0.01)
    guide = contender.guide(model)
    svi = SVI(model, guide, optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule)), contender.elbo)
    state = svi.init(jr.key(seed))
    advance = jax.jit(lambda state: jax.lax.scan(lambda s, _: svi.update(s), state, length=CHUNK))
    advance(state)[1].block_until_ready()
    started = time.monotonic()
    for _ in range(steps // CHUNK):
        state, losses = advance(state)
    losses.block_until_ready()
    seconds = (time.monotonic() - started) / steps
    params = svi.get_params(state)
    if isinstance(guide, fd.AutoFlow):
        network = guide.network
        guide = fd.AutoFlow(model, network=network, solver=FINE)
        SVI(model, guide, optax.adam(1e-3), Trace_ELBO()).init(jr.key(0))
    loss = jax.jit(jax.vmap(lambda key: Trace_ELBO().loss(key, params, model, guide)))
    bounds = -np.concatenate([np.asarray(loss(keys), np.float64) for keys in jr.split(jr.key(1), (10, DRAWS // 10))])
    return {"elbo": float(bounds.mean()), "error": float(bounds.std() / np.sqrt(len(bounds)))}, seconds


def compare(model: Callable[[], None]) -> dict:
    """Train all guides for the same number of steps, and numpyro's guides also for the same time as the flow."""
    result: dict = {}
    for name, contender in CONTENDERS.items():
        runs = [train(model, contender, STEPS, seed) for seed in range(SEEDS)]
        best = max((run for run, _ in runs), key=lambda run: run["elbo"])
        result[name] = best | {
            "all": [run["elbo"] for run, _ in runs],
            "seconds": float(np.median([s for _, s in runs])),
        }
        print(name, result[name], flush=True)
    budget = STEPS * result["AutoFlow, path gradient"]["seconds"]
    for name in ("AutoIAFNormal", "AutoBNAFNormal"):
        steps = int(budget / result[name]["seconds"]) // CHUNK * CHUNK
        runs = [train(model, CONTENDERS[name], steps, seed)[0] for seed in range(SEEDS)]
        best = max(runs, key=lambda run: run["elbo"])
        result[f"{name}, as long"] = best | {"all": [run["elbo"] for run in runs], "steps": steps}
        print(name, steps, best, flush=True)
    return result


def table(cells: dict[str, dict]) -> str:
    """The table as Markdown, with the cells that have been computed."""
    rows = []
    for model, c in cells.items():
        for name in CONTENDERS:
            longer = c.get(f"{name}, as long")
            rows.append(
                [
                    f"{model}: `{name.replace(', ', '`, ')}" + ("" if ", " in name else "`"),
                    f"{c[name]['elbo']:.3f} +- {c[name]['error']:.3f}",
                    " / ".join(f"{value:.3f}" for value in c[name]["all"]),
                    f"{c[name]['seconds'] / c['AutoIAFNormal']['seconds']:.1f}",
                    f"{longer['elbo']:.3f} +- {longer['error']:.3f}" if longer else "",
                ]
            )
    header = [
        "",
        f"ELBO after {STEPS:,} steps",
        "ELBO of each seed",
        "time per step",
        "ELBO in the same time as `AutoFlow`, path gradient",
    ]
    return "\n\n".join([markdown(header, rows), provenance("python benchmarks/guides.py", cells.values())])


def main() -> None:
    """Compute the cells that are missing and write the table."""
    jobs = {name: lambda model=model: compare(model) for name, model in MODELS.items()}
    cells = cells_of(__doc__, "guides", jobs)
    replace_block(Path("docs/guides.md"), "guides", table(cells))


if __name__ == "__main__":
    main()
