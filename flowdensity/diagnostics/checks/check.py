"""Interface of the checks of a density."""

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
"""Function that returns why a check cannot be run on a subject, with a fix if there is one, or None if it can be run."""


class AbstractCheck(eqx.Module):
    """Base class of checks, which measure figures of a density and compare them with thresholds.

    Run a custom check beside the built-in checks with `diagnose(key, density, samples, checks=(*checks.CHECKS, MyCheck()))`.

    Attributes:
        name: name of the check, under which its evidence is stored.
        section: heading under which its findings are shown.
        needs: requirements on the subject, such as `held_out_rows`. If one of them is not met, the findings are "not measured",
            with the reason.
        randomized: whether the check uses its key. Keys are split among the checks that use one, in order.
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
            subject: the density, with quantities that several checks use. It meets the needs of this check.

        Returns:
            The measured figures by id, one for each of `figures`, and their evidence, such as the underlying arrays, or None.
        """

    def run(self, key: Key, subject: Subject) -> tuple[tuple[Finding, ...], Any]:
        """Return the findings and their evidence. The findings are not measured if a need of the check is not met.

        Args:
            key: JAX PRNG key.
            subject: the density, with quantities that several checks use.

        Raises:
            TypeError: if `measure` returns values of the wrong form.
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
        """Check the result of `measure`, since the check may be the user's own."""
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
            f"diagnose expected `measure` of the check {self.name!r} to return two values: a dict with a scalar "
            f"fd.checks.Measured for each of {ids}, and the evidence; got {got}. The other checks can be run without it. "
            f"Fix: checks = [check for check in checks if check.name != {self.name!r}]"
        )


def _is_measured(figure: object) -> bool:
    return isinstance(figure, Measured) and np.ndim(figure.value) == 0 and np.ndim(figure.standard_error) == 0


def held_out_rows(subject: Subject) -> str | None:
    """Need held-out rows, at least `MIN_HELD_OUT_ROWS` of them.

    Examples:
        >>> [check.name for check in fd.checks.CHECKS if fd.checks.held_out_rows in check.needs]
        ['nearest_neighbors', 'coverage', 'score']
    """
    if subject.has_held_out:
        return None
    count = len(subject.held_out.states)
    got = f"; there are {count}" if count else ""
    return f"at least {MIN_HELD_OUT_ROWS} held-out rows are needed{got}. Fix: diagnosis = fd.diagnose(key, density, samples)"
