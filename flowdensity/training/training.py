"""Training options that every fit takes."""

from dataclasses import dataclass
from typing import NamedTuple

import optax

from .._checks import check_count, check_kind, check_number

FEW_ROWS = 2000
"""Below this number of rows the default network is smaller and trains with a lower learning rate and fewer steps, since it
overfits sooner."""
FEW_DIMENSIONS = 3
"""Up to this dimension the divergence is exact by default, the default network has Fourier features and a higher learning rate,
and some angles are drawn with the likelihood weighting, however many rows there are."""


class Plan(NamedTuple):
    """Options of one stage, with the defaults of that stage filled in.

    Attributes:
        steps: maximum number of optimizer steps.
        batch_size: number of terms of the loss in each step.
        learning_rate: peak learning rate.
        optimizer: optimizer to use, unchanged, instead of AdamW; None for AdamW.
        validation: fraction of the rows that are held out.
    """

    steps: int
    batch_size: int
    learning_rate: float
    optimizer: optax.GradientTransformation | None
    validation: float

    def share(self, part: int, least: int, most: int) -> int:
        """Number of draws, one for every `part` terms of the training loss, so that other work does not outweigh the training."""
        return min(max(least, self.steps * self.batch_size // part), most)


@dataclass(frozen=True)
class Training:
    """Training options for every stage of every fit. An option that is None takes the default of the stage.

    By default each stage uses AdamW with clipped gradients and a cosine schedule after a short warm-up, and returns an
    exponential moving average of the weights.

    Args:
        steps: maximum number of optimizer steps of each stage; by default 2,000 to 6,000, depending on the stage,
            the number of rows and the dimension.
        batch_size: number of terms of the loss in each step; by default 128 to 512, depending on the same.
        learning_rate: peak learning rate of the default optimizer.
        optimizer: an optax optimizer that needs gradients only. It is used unchanged in every stage, with its own learning rate
            and schedule. In `fit_flow` and `fit_diffusion` the networks of all folds form one tree whose arrays have a leading
            axis, and the masks and norms of the optimizer apply to these arrays.
        validation: fraction of the rows that are held out for early stopping, between 0 and 1.

    Raises:
        TypeError: if `optimizer` is not an optax optimizer.
        ValueError: if an option is out of range, or both `optimizer` and `learning_rate` are given.

    Examples:
        >>> import optax
        >>> training = fd.Training(steps=2000, optimizer=optax.lion(1e-4))
        >>> density, report = fd.fit_flow(key, data, training=training)
    """

    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    optimizer: optax.GradientTransformation | None = None
    validation: float = 0.1

    def __post_init__(self) -> None:
        # Convert to Python numbers, so that options of equal value compare equal and hash alike.
        if self.steps is not None:
            self._set("steps", check_count("Training", "steps", self.steps, fix=4000))
        if self.batch_size is not None:
            self._set("batch_size", check_count("Training", "batch_size", self.batch_size, fix=512))
        if self.learning_rate is not None:
            rate = check_number("Training", "learning_rate", self.learning_rate, 0.0, fix=1e-3)
            self._set("learning_rate", float(rate))
        self._set("validation", float(check_number("Training", "validation", self.validation, 0.0, 1.0, fix=0.1)))
        if self.optimizer is not None:
            check_kind(
                "Training", "optimizer", self.optimizer, optax.GradientTransformation, "optimizer = optax.adam(1e-3)"
            )
            if self.learning_rate is not None:
                raise ValueError(
                    "Training expected `optimizer` or `learning_rate`, since an optax optimizer brings its own learning "
                    f"rate; got both, with learning_rate={self.learning_rate:g}. Fix: learning_rate = None"
                )

    def _set(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    def plan(self, steps: int, batch_size: int, learning_rate: float = 1e-3) -> Plan:
        """Return the options of a stage, given the defaults of that stage."""
        return Plan(
            steps if self.steps is None else self.steps,
            batch_size if self.batch_size is None else self.batch_size,
            learning_rate if self.learning_rate is None else self.learning_rate,
            self.optimizer,
            self.validation,
        )

    def fingerprint(self) -> tuple[float | None, ...]:
        """Return the numbers that a training depends on. Stages with a checkpoint also compare their optimizers."""
        return self.steps, self.batch_size, self.learning_rate, self.validation


def held_out(rows: int, validation: float) -> int:
    """Return the number of held-out rows: the fraction `validation`, but at least one row and never all."""
    return min(max(1, round(validation * rows)), rows - 1)


def check_training(caller: str, training: object) -> Training:
    """Return the training options of a call, by default `Training()`.

    Raises:
        TypeError: if `training` is not a `Training`.
    """
    if training is None:
        return Training()
    check_kind(caller, "training", training, Training, "training = fd.Training()")
    assert isinstance(training, Training)
    return training
