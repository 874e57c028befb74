"""What a fit has to say for itself."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from .._display import Row, html_table, one_line
from .._registry import savable
from ..divergence.calibration import Residuals
from ..references.choice import ReferenceChoice
from .loop import History


@savable
@dataclass(frozen=True)
class StepErrors:
    """How the solver's number of steps was chosen: the fewest tried whose error is within a tolerance.

    Attributes:
        steps: numbers of steps that were tried, the last of which was taken.
        errors: for each, the root mean square over rows of the data of the change of `log_prob` when the steps are doubled, nats.
        tolerance: nats.
    """

    steps: tuple[int, ...]
    errors: tuple[float, ...]
    tolerance: float

    def summary(self) -> str:
        """One line of text."""
        return (
            f"solver: {self.steps[-1]} steps; log_prob is within {self.errors[-1]:.2g} nats (root mean square) of that with "
            f"twice as many, tolerance {self.tolerance:g}"
        )


@savable
@dataclass(frozen=True)
class Amortization:
    """How far an amortized density is from the flow it was distilled from, on fresh samples of the flow.

    Attributes:
        bias: mean of the difference of their log densities in nats, after normalization, and its standard error.
        rmse: root mean square of that, and its standard error.
        gradient: root mean square error of the gradient of `log_prob` in whitened coordinates, as a fraction of that gradient's
            own root mean square.
        log_normalizer: log of the integral of the amortized density in nats, and its standard error; 0 is normalized.
        between_contexts: standard deviation of the log normalizer between contexts, in nats, Monte-Carlo error taken out.
        efficiency: share of the effective sample size that is kept where draws of the amortized density are weighted back to
            the flow's.
    """

    bias: tuple[float, float]
    rmse: tuple[float, float]
    gradient: float
    log_normalizer: tuple[float, float]
    between_contexts: float
    efficiency: float

    def summary(self) -> str:
        """One line of text."""
        (bias, bias_error), (rmse, rmse_error) = self.bias, self.rmse
        integral, integral_error = self.log_normalizer
        return (
            f"amortized log_prob less the flow's, on fresh samples of the flow: mean {bias:+.3f} +- {bias_error:.3f} nats, "
            f"root mean square {rmse:.3f} +- {rmse_error:.3f}; gradients off by {self.gradient:.1%}; log normalizer "
            f"{integral:+.4f} +- {integral_error:.4f}, between contexts {self.between_contexts:.4f}; weights back to the "
            f"flow keep {self.efficiency:.1%} of the draws"
        )


@savable
@dataclass(frozen=True)
class FitReport:
    """How a fit went: losses, errors of what was learned and wall time, with a readable `summary()`.

    Attributes:
        histories: per stage, the losses and how the stage ended.
        residuals: Stein residuals of the learned divergence on fresh kernel draws about samples of the model; None
            where no divergence was learned.
        seconds: wall time of each stage.
        steps: how the solver's number of steps was chosen; None for fits that choose none.
        amortization: how far an amortized density is from its flow; None for other fits.
        reference: how the reference of a flow was chosen; None where there was no choice.
        columns: the transforms of columns before the whitening, in one line; None for fits that whiten none.
        divergence: which divergence was taken by default and why, in one line; None where it was distilled or given.
        interrupted: what Ctrl-C cut short or left undone; None for a fit that ran to its end.
    """

    histories: dict[str, History]
    seconds: dict[str, float]
    residuals: Residuals | None = None
    steps: StepErrors | None = None
    amortization: Amortization | None = None
    reference: ReferenceChoice | None = None
    columns: str | None = None
    divergence: str | None = None
    interrupted: tuple[str, ...] | None = None

    @property
    def learned(self) -> bool:
        """Whether a step of training was done."""
        return any(history.learned for history in self.histories.values())

    def so_far(self) -> str:
        """What becomes of the fit if it is interrupted now, as the end of a sentence."""
        undone = self.interrupted or ()
        is_exact = "divergence" in undone and "divergence" not in self.histories
        more = ". Its divergence is the exact one; fd.fit_divergence distills it" if is_exact else ""
        return f"the best until then is returned. Cut short or left undone: {', '.join(undone)}{more}"

    def with_divergence(self, learned: "FitReport", *undone: str) -> "FitReport":
        """The report of a flow with what is `learned` of its divergence; `undone` is what a fit has left to do after that."""
        return dataclasses.replace(
            self,
            histories=self.histories | learned.histories,
            seconds=self.seconds | learned.seconds,
            residuals=learned.residuals,
            interrupted=(*(learned.interrupted or ()), *undone),
        )

    @property
    def losses(self) -> dict[str, dict[str, np.ndarray]]:
        """Per stage the arrays "step", "train" and "validation", of equal length."""
        return {stage: history.arrays() for stage, history in self.histories.items()}

    @property
    def conclusion(self) -> str:
        """The verdict in words, such as "Fit finished: flow and divergence in 95 s."."""
        seconds = f"{sum(self.seconds.values()):.0f} s"
        if self.interrupted is not None:
            return f"Interrupted after {seconds}; cut short or left undone: {', '.join(self.interrupted)}."
        # A stage without a step had nothing to learn.
        stuck = [stage for stage, history in self.histories.items() if history.learned and history.best_step == 0]
        if stuck:
            stages = f"The {' and the '.join(stuck)} did not leave {'its' if len(stuck) == 1 else 'their'} reference"
            return f"{stages}: training did not improve on it ({seconds})."
        return f"Fit finished: {' and '.join(self.histories) or 'no stages'} in {seconds}."

    def summary(self) -> str:
        """Return the verdict in words, and a line for the columns, for what each stage reached and for what was learned."""
        return "\n".join([self.conclusion, *self._lines()])

    def _lines(self) -> list[str]:
        lines = [] if self.columns is None else [self.columns]
        if self.reference is not None:
            lines.append(self.reference.summary())
        for stage, history in self.histories.items():
            if history.gain is None:
                kept = history.validation[history.step.index(history.best_step)]
                reached = f"validation loss {history.validation[0]:.4f} -> {kept:.4f}"
            else:
                gain, error = history.gain
                reached = f"at best held-out rows are {gain:+.3f} +- {error:.3f} nats above the reference"
            lines.append(
                f"{stage}: {history.step[-1]} steps in {history.seconds:.0f} s, {history.ending}; {reached}, "
                f"weights of step {history.best_step}"
            )
        if self.divergence is not None:
            lines.append(self.divergence)
        if self.residuals is not None:
            bias, error = self.residuals.bias
            share = np.mean(np.abs(self.residuals.z) > 2.0)
            lines.append(
                f"learned divergence: mean error of log_prob {bias:+.3f} +- {error:.3f} nats over samples of the "
                f"model; {share:.0%} of {self.residuals.z.size} Stein residuals beyond 2 standard errors (5 % expected)"
            )
        if self.steps is not None:
            lines.append(self.steps.summary())
        if self.amortization is not None:
            lines.append(self.amortization.summary())
        if self.interrupted is not None:
            lines.append(f"interrupted: cut short or left undone: {', '.join(self.interrupted)}")
        others = {k: v for k, v in self.seconds.items() if k not in self.histories}
        if others:
            lines.append("also: " + ", ".join(f"{k} {v:.0f} s" for k, v in others.items()))
        return lines

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return one_line(self, self.conclusion)

    def _repr_html_(self) -> str:
        # A line opens with what it is about.
        rows = [Row((about, text)) for about, _, text in (line.partition(": ") for line in self._lines())]
        finished = self.conclusion.startswith("Fit finished")
        return html_table("Fit", self.conclusion, rows, verdict="good" if finished else "unclear")
