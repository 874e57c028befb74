"""What a diagnosis finds: figures with standard errors, each with a verdict against a stated threshold."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..divergence.calibration import Residuals

Verdict = Literal["good", "bad", "unclear", "not measured"]
SIGNIFICANT = 3.3
"""Standard errors by which a figure must be on the wrong side of its threshold to be called bad: one in 2,000 by chance."""


@dataclass(frozen=True)
class Finding:
    """One figure of a diagnosis.

    Attributes:
        section: what is looked at.
        quantity: what is measured, with its unit.
        value: the figure; None if it was not measured.
        standard_error: of it, in the same unit; 0 for what has none.
        bound: whether the threshold is the most or the least that it may be.
        threshold: what it is held against.
        words: what to do if it is bad; why, if it was not measured.
    """

    section: str
    quantity: str
    value: float | None
    standard_error: float
    bound: Literal["at most", "at least"]
    threshold: float
    words: str

    @property
    def verdict(self) -> Verdict:
        """Whether it is on the right side of the threshold, beyond 3.3 standard errors on the wrong one, or between."""
        if self.value is None:
            return "not measured"
        excess = self.value - self.threshold if self.bound == "at most" else self.threshold - self.value
        # Also where the figure is not a number.
        if not excess <= SIGNIFICANT * self.standard_error:
            return "bad"
        return "good" if excess <= 0.0 else "unclear"


@dataclass(frozen=True)
class Evidence:
    """The arrays behind the findings, for plots.

    Attributes:
        log_probs: of the points, by the density, in whitened coordinates, shape `(points,)`, nats.
        errors: by how much these differ from log densities with the exact divergence, same shape; empty if not measured.
        residuals: of the learned divergence; None where none was learned.
        factors: by which samples were moved outwards, shape `(factors,)`.
        tails: log densities there by the density and with the exact divergence, shape `(factors, 2, points)`.
    """

    log_probs: np.ndarray
    errors: np.ndarray
    residuals: Residuals | None
    factors: np.ndarray
    tails: np.ndarray


@dataclass(frozen=True)
class Diagnosis:
    """How far a density can be trusted, with a readable `summary()`.

    Attributes:
        findings: the figures, in order.
        evidence: the arrays behind them.
        seconds: wall time.
    """

    findings: tuple[Finding, ...]
    evidence: Evidence = field(repr=False)
    seconds: float

    @property
    def bad(self) -> tuple[Finding, ...]:
        """The findings whose verdict is bad."""
        return tuple(finding for finding in self.findings if finding.verdict == "bad")

    def as_dict(self) -> dict[str, Any]:
        """Findings by section and quantity, each with its value, standard error, threshold and verdict."""
        sections: dict[str, Any] = {}
        for finding in self.findings:
            entry = {k: v for k, v in asdict(finding).items() if k not in ("section", "quantity")}
            sections.setdefault(finding.section, {})[finding.quantity] = entry | {"verdict": finding.verdict}
        return sections

    def summary(self) -> str:
        """A line for each finding, and what to do about the bad ones."""
        measured = [finding for finding in self.findings if finding.value is not None]
        width = max(len(finding.quantity) for finding in self.findings)
        head = (
            f"{len(self.bad)} of {len(measured)} findings are bad"
            if self.bad
            else f"{len(measured)} findings, none bad"
        )
        lines = [f"{head} ({self.seconds:.0f} s)"]
        for section, entries in self.as_dict().items():
            lines.append(f"\n{section}")
            for quantity, entry in entries.items():
                lines.append(f"  {quantity:<{width}}  {_figure(entry)}")
        if self.bad:
            lines.append("\nWhat to do")
            # One remedy may serve several findings.
            lines += [f"  - {words}" for words in dict.fromkeys(finding.words for finding in self.bad)]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.summary()


def _figure(entry: dict[str, Any]) -> str:
    if entry["value"] is None:
        return f"not measured: {entry['words']}"
    error = f" ± {entry['standard_error']:.2g}" if entry["standard_error"] else ""
    figure = f"{entry['value']:.4g}{error}"
    return f"{figure:<20}  {entry['bound']} {entry['threshold']:<6.3g}  {entry['verdict']}"
