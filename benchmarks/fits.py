"""Flows that several benchmarks share: fitted once, and kept beside the code until they are deleted."""

import pickle
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
from mixtures import Mixture
from twisted import TwistedChain

import flowdensity as fd

KEPT = Path(__file__).parent / ".fits"
ROWS = 20_000


def mixture_flow(dim: int, components: int = 6) -> tuple[Mixture, fd.FlowDensity, dict[str, float]]:
    """A mixture, the density that `fit_flow` learns from 20,000 rows of it, and the seconds of each stage.

    Defaults but for the divergence, which is learned in any dimension.
    """
    mixture, learned = Mixture(dim, 0, components), fd.objectives.LangevinStein()
    return mixture, *flow(f"mixture-{dim}-{components}", mixture.sample(ROWS, 1000), divergence=learned)


def chain_flow(dim: int) -> tuple[TwistedChain, fd.FlowDensity, dict[str, float]]:
    """The same for a twisted chain."""
    law, learned = TwistedChain(dim), fd.objectives.LangevinStein()
    return law, *flow(f"chain-{dim}", law.rows(ROWS, 1000), divergence=learned)


def flow(name: str, data: np.ndarray, **options: Any) -> tuple[fd.FlowDensity, dict[str, float]]:
    """The density that `fit_flow` learns from the data of that name, with its defaults but for `options`, and the seconds of
    each stage."""
    file = KEPT / f"{name}.pickle"
    if not file.exists():
        density, report = fd.fit_flow(jr.key(0), data, **options)
        KEPT.mkdir(exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_bytes(pickle.dumps((density, report.seconds)))
        partial.rename(file)
    return pickle.loads(file.read_bytes())
