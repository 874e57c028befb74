"""The interface of a check of a density."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import equinox as eqx
import numpy as np

from ..._checks import described
from ..._typing import Key
from ..findings import Finding, Measured
from ..subject import MIN_HELD_OUT_ROWS, Subject

if TYPE_CHECKING:
    from typing import (
        ClassVar as AbstractClassVar,  # as equinox's documentation says, since type checkers do not know its own
    )
else:
    from equinox import AbstractClassVar

Need: TypeAlias = Callable[[Subject], str | None]
"""Returns why a check cannot be run on a subject, with a fix if there is one, or None if it can."""


class AbstractCheck(eqx.Module):
    """A check measures figures of a density and compares them with thresholds.

    `diagnose(key, density, samples, checks=(*checks.CHECKS, MyCheck()))` runs one beside the built-in checks.

    Attributes:
        name: name of the check, under which its evidence is found.
        section: heading under which its findings are shown.
        needs: what a subject must have for the check to be run, such as `held_out_rows`. Where it lacks one of them, the findings
            are "not measured", with the reason.
        randomized: whether the check uses its key. Keys are split among the checks that do, in order.
    """

    name: AbstractClassVar[str]
    section: AbstractClassVar[str]
    needs: AbstractClassVar[tuple[Need, ...]]
    randomized: AbstractClassVar[bool]

    @abc.abstractmethod
    def figures(self, subject: Subject) -> tuple[Finding, ...]:
        """Return the findings of this check before anything is measured, each with its id, threshold and advice."""

    @abc.abstractmethod
    def measure(self, key: Key, subject: Subject) -> tuple[Mapping[str, Measured], Any]:
        """Measure the figures.

        Args:
            key: JAX PRNG key.
            subject: the density, with what several checks use. It has what this check needs.

        Returns:
            The measured figures by id, one for each of `figures`, and the arrays behind them, or None.
        """

    def run(self, key: Key, subject: Subject) -> tuple[tuple[Finding, ...], Any]:
        """Return the findings and their evidence; they are not measured if the subject lacks something.

        Args:
            key: JAX PRNG key.
            subject: the density, with what several checks use.

        Raises:
            TypeError: if `measure` does not return what it should.
        """
        figures = [replace(figure, section=self.section) for figure in self.figures(subject)]
        reasons = [reason for need in self.needs if (reason := need(subject)) is not None]
        if reasons:
            return tuple(replace(figure, reason=reasons[0]) for figure in figures), None
        result = self.measure(key, subject)
        self._check_measured(result, [figure.id for figure in figures])
        measured, evidence = result
        return tuple(figure.measured(measured[figure.id]) for figure in figures), evidence

    def _check_measured(self, result: Any, ids: list[str]) -> None:
        """Check what `measure` has returned: a check may be the user's own."""
        if not isinstance(result, tuple) or len(result) != 2:
            got = described(result)
        elif not isinstance(result[0], Mapping):
            got = f"figures as {described(result[0])}"
        elif set(result[0]) != set(ids):
            got = f"figures for {list(result[0])}"
        elif wrong := [id for id, figure in result[0].items() if not _is_measured(figure)]:
            got = f"{result[0][wrong[0]]!r} for {wrong[0]!r}"
        else:
            return
        raise TypeError(
            f"diagnose expected `measure` of the check {self.name!r} to return two values, a dict with one "
            f"fd.checks.Measured of scalars for each of {ids} and the evidence; got {got}. Without this check the others can "
            f"be run. Fix: checks = [check for check in checks if check.name != {self.name!r}]"
        )


def _is_measured(figure: object) -> bool:
    return isinstance(figure, Measured) and np.ndim(figure.value) == 0 and np.ndim(figure.standard_error) == 0


def held_out_rows(subject: Subject) -> str | None:
    """Need held-out rows, at least `MIN_HELD_OUT_ROWS` of them."""
    if subject.has_held_out:
        return None
    count = len(subject.held_out.states)
    got = f"; there are {count}" if count else ""
    return f"at least {MIN_HELD_OUT_ROWS} held-out rows are needed{got}. Fix: diagnosis = fd.diagnose(key, density, samples)"
