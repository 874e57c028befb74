"""The options that every fit takes: defaults, and checks before any work is done."""

import math
from numbers import Integral, Real
from typing import NamedTuple

SMALL = 2000
"""Below so many rows a network is smaller, trained more slowly and for fewer steps: it is over-fitted sooner."""


class Options(NamedTuple):
    """Checked options of a stage.

    Attributes:
        steps: optimiser steps.
        batch_size: terms of the loss in each step.
        learning_rate: peak learning rate; None is the stage's own default.
    """

    steps: int
    batch_size: int
    learning_rate: float | None


def check_options(
    caller: str, rows: int, steps: int | None, batch_size: int | None, learning_rate: float | None
) -> Options:
    """Check the options of a stage and fill in the defaults that stages share.

    Args:
        caller: public function whose name the errors carry.
        rows: rows of the table.
        steps: None means 8,000, or 4,000 below 2,000 rows.
        batch_size: None means 512.
        learning_rate: None leaves it to the stage.

    Raises:
        ValueError: if one is out of range.
    """
    if steps is None:
        steps = 4000 if rows < SMALL else 8000
    batch_size = 512 if batch_size is None else batch_size
    steps, batch_size = check_count(caller, "steps", steps), check_count(caller, "batch_size", batch_size)
    if learning_rate is not None and not (
        isinstance(learning_rate, Real) and math.isfinite(learning_rate) and learning_rate > 0.0
    ):
        raise ValueError(
            f"{caller} expected `learning_rate` as a positive number; got {learning_rate!r}. Fix: learning_rate=1e-3"
        )
    return Options(steps, batch_size, None if learning_rate is None else float(learning_rate))


def check_count(caller: str, name: str, count: object, *, least: int = 1) -> int:
    """`count` as an integer.

    Raises:
        ValueError: if it is none, or below `least`.
    """
    if not isinstance(count, Integral) or count < least:
        raise ValueError(
            f"{caller} expected `{name}` as an integer of at least {least}; got {count!r}. Fix: {name}=512"
        )
    return int(count)


def held_out(rows: int, validation: float) -> int:
    """How many of so many rows are held out: the fraction `validation`, but at least one, and not all."""
    return min(max(1, round(validation * rows)), rows - 1)


def check_kind(caller: str, name: str, value: object, kind: type, fix: str) -> None:
    """Raise a TypeError unless `value` is a `kind`."""
    if not isinstance(value, kind):
        got = repr(value) if isinstance(value, str) else type(value).__name__
        raise TypeError(f"{caller} expected `{name}` of type {kind.__name__}; got {got}. Fix: {name}={fix}")
