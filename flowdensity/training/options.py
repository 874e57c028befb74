"""The options that every fit takes: defaults, and checks before any work is done."""

from typing import NamedTuple

from .._checks import check_count, check_number

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

    def share(self, part: int, least: int, most: int) -> int:
        """One for every `part` terms of the loss in training: what is done before and after, but does not outweigh it."""
        return min(max(least, self.steps * self.batch_size // part), most)


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
    steps = check_count(caller, "steps", steps, fix=4000)
    batch_size = check_count(caller, "batch_size", batch_size, fix=512)
    if learning_rate is not None:
        learning_rate = check_number(caller, "learning_rate", learning_rate, 0.0, fix=1e-3)
    return Options(steps, batch_size, learning_rate)


def held_out(rows: int, validation: float) -> int:
    """How many of so many rows are held out: the fraction `validation`, but at least one, and not all."""
    return min(max(1, round(validation * rows)), rows - 1)
