"""Findings of a diagnosis: figures with standard errors and with verdicts against stated thresholds."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

from .._display import Row, html_table, one_line

Verdict = Literal["good", "bad", "unclear", "not measured"]
SIGNIFICANT = 3.3
"""Number of standard errors beyond its threshold at which a figure is bad. By chance this happens once in 2,000."""


class Measured(NamedTuple):
    """A measured figure.

    Attributes:
        value: the figure.
        standard_error: its standard error in the same unit; 0 if it has none.
        where: the worst place, such as "y[1]", if the figure is the largest of several.

    Examples:
        >>> fd.checks.Measured(0.12, standard_error=0.03)
        Measured(value=0.12, standard_error=0.03, where='')
    """

    value: float
    standard_error: float = 0.0
    where: str = ""


@dataclass(frozen=True)
class Finding:
    """One figure of a diagnosis.

    Attributes:
        id: a stable name, such as "log_prob.rmse".
        quantity: description of the figure, with its unit.
        bound: whether the threshold is an upper or a lower bound.
        threshold: the bound.
        advice: what to do if the figure is bad.
        section: heading under which the figure is shown.
        value: the figure; None if it was not measured.
        standard_error: its standard error in the same unit; 0 if it has none.
        where: the worst place, if the figure is the largest of several.
        reason: why the figure was not measured, and what to do.

    Examples:
        >>> diagnosis = fd.diagnose(key, density)
        >>> finding = diagnosis["log_prob.rmse"]
        >>> finding.value, finding.standard_error, finding.verdict
    """

    id: str
    quantity: str
    bound: Literal["at most", "at least"]
    threshold: float
    advice: str = ""
    section: str = ""
    value: float | None = None
    standard_error: float = 0.0
    where: str = ""
    reason: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the figure is within its threshold, beyond it by more than 3.3 standard errors, or beyond it by less."""
        if self.value is None:
            return "not measured"
        excess = self.value - self.threshold if self.bound == "at most" else self.threshold - self.value
        # A comparison with NaN is false, and a figure that is not a number is bad.
        if not excess <= SIGNIFICANT * self.standard_error:
            return "bad"
        return "good" if excess <= 0.0 else "unclear"

    def measured(self, figure: Measured) -> "Finding":
        """Return the finding with a measured figure."""
        return replace(self, value=float(figure.value), standard_error=float(figure.standard_error), where=figure.where)

    @property
    def text(self) -> tuple[str, str]:
        """Return the figure with its standard error, and its threshold."""
        if self.value is None:
            return "", ""
        error = f" ± {self.standard_error:.2g}" if self.standard_error else ""
        where = f" at {self.where}" if self.where else ""
        return f"{self.value:.4g}{error}{where}", f"{self.bound} {self.threshold:.3g}"


@dataclass(frozen=True, eq=False)
class Diagnosis(Mapping[str, Finding]):
    """Mapping from ids, such as "log_prob.rmse", to findings about how far a density can be trusted.

    Attributes:
        findings: the findings, in order.
        evidence: the arrays behind them, by name of the check.
        seconds: wall time.

    Examples:
        >>> diagnosis = fd.diagnose(key, density)
        >>> [finding.advice for finding in diagnosis.bad]
        >>> {id: finding.value for id, finding in diagnosis.items()}
    """

    findings: tuple[Finding, ...]
    evidence: Mapping[str, Any] = field(repr=False)
    seconds: float

    def __getitem__(self, id: str) -> Finding:
        for finding in self.findings:
            if finding.id == id:
                return finding
        raise KeyError(f"{id!r}; the findings are {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        return (finding.id for finding in self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def bad(self) -> tuple[Finding, ...]:
        """The findings whose verdict is bad."""
        return self._with("bad")

    @property
    def conclusion(self) -> str:
        """Verdict in words, such as "2 of 14 figures are bad: log_prob.rmse, tails.2."."""
        missing = self._with("not measured")
        count = len(self) - len(missing)
        figures = f"{count} figure{'' if count == 1 else 's'}"
        if self.bad:
            return f"{len(self.bad)} of {figures} {'is' if len(self.bad) == 1 else 'are'} bad: {_ids(self.bad)}."
        if count == 0:
            return "Nothing was measured."
        unclear = self._with("unclear")
        doubts = [f"; {what}: {_ids(ids)}" for what, ids in (("unclear", unclear), ("not measured", missing)) if ids]
        return f"No fault found in {figures}{''.join(doubts)}."

    def as_dict(self) -> dict[str, Any]:
        """Return the findings by id, each with its section, quantity, value, standard error, threshold and verdict."""
        return {
            id: {k: v for k, v in asdict(finding).items() if k != "id"} | {"verdict": finding.verdict}
            for id, finding in self.items()
        }

    def summary(self) -> str:
        """Return the verdict in words, a line for each finding, and advice about the bad findings."""
        texts = [(finding.id, finding.quantity, *finding.text) for finding in self.findings]
        widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
        lines, section = [f"{self.conclusion} ({self.seconds:.0f} s)"], None
        for finding, row in zip(self.findings, texts, strict=True):
            if finding.section != section:
                section = finding.section
                lines.append(f"\n{section}")
            columns = [f"{text:<{width}}" for text, width in zip(row, widths, strict=True)]
            lines.append(f"  {'  '.join([*columns, finding.verdict])}")
        for heading, texts in self._notes().items():
            lines += [f"\n{heading}", *(f"  - {text}" for text in texts)]
        return "\n".join(lines)

    def _with(self, verdict: Verdict) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.verdict == verdict)

    def _notes(self) -> dict[str, list[str]]:
        """Return advice about bad figures, and the reasons why others were not measured, by heading and without repetition."""
        advice: dict[str, list[Finding]] = {}
        reasons: dict[str, list[Finding]] = {}
        for finding in self.bad:
            advice.setdefault(finding.advice, []).append(finding)
        for finding in self._with("not measured"):
            reasons.setdefault(finding.reason, []).append(finding)
        notes = {"What to do": [f"{_ids(found)}: {text}" for text, found in advice.items() if text]}
        notes["Not measured"] = [f"{_ids(found)}: {text}" for text, found in reasons.items()]
        return {heading: texts for heading, texts in notes.items() if texts}

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        rows: list[Row | str] = []
        section = None
        for finding in self.findings:
            if finding.section != section:
                section = finding.section
                rows.append(section)
            rows.append(Row((finding.id, finding.quantity, *finding.text), finding.verdict))
        notes = [f"{heading}: {text}" for heading, texts in self._notes().items() for text in texts]
        measured = len(self) > len(self._with("not measured"))
        verdict = "bad" if self.bad else "good" if measured and not self._with("unclear") else "unclear"
        header = ("id", "figure", "value", "threshold", "verdict")
        return html_table("Diagnosis", self.conclusion, rows, header=header, notes=notes, verdict=verdict)


def _ids(findings: tuple[Finding, ...] | list[Finding]) -> str:
    return ", ".join(finding.id for finding in findings)
