"""Check of `log_prob` in regions without data, at samples that are moved outwards."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ..._typing import Key
from ..findings import Finding, Measured
from ..subject import Subject, first_rows, values
from .check import AbstractCheck


@dataclass(frozen=True, eq=False)
class TailErrors:
    """Evidence of `Tails`.

    Attributes:
        factors: factors by which samples were moved outwards, shape `(factors,)`.
        log_probs: log densities there, shape `(factors, points)`, nats.
        exact: exact log densities there, same shape.
    """

    factors: np.ndarray
    log_probs: np.ndarray
    exact: np.ndarray


class Tails(AbstractCheck):
    r"""How far `log_prob` exceeds the exact log density at samples moved outwards, and whether it decreases along outward rays.

    A chain would get lost where `log_prob` is far too high.

    Attributes:
        max_excess: largest 99th percentile of the excess, in nats, divided by the square root of the dimension.
        factors: factors by which samples are moved outwards.

    Examples:
        >>> check = fd.checks.Tails(factors=(2.0, 3.0))
        >>> fd.diagnose(key, density, checks=(check,))["tails.3"].value
    """

    max_excess: float = 0.3
    factors: tuple[float, ...] = (2.0, 4.0, 10.0)

    name = "tails"
    section = "Tails, samples moved outwards"
    needs = ()
    randomized = False

    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        threshold = self.max_excess * math.sqrt(subject.model.dim)
        advice = (
            "The learned divergence is wrong where there are no data. The default objective, "
            f"fd.objectives.LangevinStein(tails=0.15), learns from tails. {subject.exact_line}"
        )
        if subject.amortized:
            advice = (
                "The amortized log_prob is wrong where there are no data. fd.reweight corrects a posterior. "
                f"{subject.exact_line}"
            )
        excesses = [
            Finding(
                f"tails.{factor:g}",
                f"99th percentile of the excess at {factor:g}x, nats",
                "at most",
                threshold,
                advice,
            )
            for factor in self.factors
        ]
        rising = "share of rays where log_prob rises past the samples"
        return (*excesses, Finding("tails.rising", rising, "at most", 0.0, advice))

    def measure(self, key: Key, subject: Subject) -> tuple[dict[str, Measured], TailErrors]:
        samples = first_rows(subject.samples, subject.num_points // 2)
        moved = [samples._replace(states=factor * samples.states) for factor in self.factors]
        own = np.stack([values(subject.log_prob, points) for points in moved])
        exact = np.stack([values(subject.exact_log_probs[0], points) for points in moved])
        figures = {}
        for factor, excess in zip(self.factors, own - exact, strict=True):
            # The standard error of a percentile is computed from the percentiles on both sides of it.
            low, value, high = np.percentile(excess, [98.0, 99.0, 100.0])
            figures[f"tails.{factor:g}"] = Measured(value, (high - low) / 4.0)
        # Rays start at the radius of the farthest sample, since closer to the center a ray may pass between modes.
        radii = jnp.linalg.norm(samples.states, axis=1, keepdims=True)
        edge = samples.states / radii * jnp.max(radii)
        heights = [values(subject.log_prob, samples._replace(states=factor * edge)) for factor in (1.0, *self.factors)]
        figures["tails.rising"] = Measured(np.mean(np.any(np.diff(heights, axis=0) >= 0.0, axis=0)))
        return figures, TailErrors(np.asarray(self.factors), own, exact)
