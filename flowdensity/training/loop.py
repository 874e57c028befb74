"""The one training loop: every stage of every fit is a loss, a validation loss and this."""

import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal, Self, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from tqdm.auto import tqdm

from .._registry import savable
from .._typing import Key, Scalar
from .checkpoints import Checkpoint

Module = TypeVar("Module")
VALIDATIONS = 25
"""Number of times that a stage is validated."""

Status = Literal["completed", "stopped early", "interrupted", "nothing to learn"]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Args:
        steps: maximum number of optimizer steps.
        learning_rate: peak of a cosine schedule with a short warm-up.
        patience: stop after this many steps without improvement of the validation loss and return the best weights; None,
            for losses with unlimited fresh data, runs all steps and returns the last weights.
        optimizer: used instead of AdamW, as it is; None is AdamW.
        stop: end after this many steps of the schedule; None runs it to its end.
        ema: decay of the exponential moving average of the weights, warmed up with the step count.
        clip: global norm at which gradients are clipped.
        weight_decay: decoupled decay of arrays with more than one axis: matrices, and the vectors of networks that are trained
            side by side. Scalars and other vectors, such as those that describe the data, do not decay.
    """

    steps: int
    learning_rate: float
    patience: int | None
    optimizer: optax.GradientTransformation | None = None
    stop: int | None = None
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 1e-4

    @property
    def every(self) -> int:
        """Steps from one validation to the next."""
        return max(1, self.steps // VALIDATIONS)

    def make_optimizer(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer that was given, or AdamW with clipped gradients."""
        if self.optimizer is not None:
            return optax.with_extra_args_support(self.optimizer)
        rate = optax.warmup_cosine_decay_schedule(
            0.0,
            self.learning_rate,
            warmup_steps=min(self.every, 200, self.steps - 1),
            decay_steps=self.steps,
            end_value=0.01 * self.learning_rate,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(
                rate,
                b2=0.99,
                weight_decay=self.weight_decay,
                mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree),
            ),
        )


@savable
@dataclass(frozen=True)
class History:
    """Losses of one stage: equally long series of step, training loss since the last entry, and validation loss.

    Attributes:
        step: optimizer steps done.
        train: mean training loss since the last entry; the first entry, before any step, repeats that of `validation`.
        validation: loss of held-out rows or of fresh draws; minus their log density where there is a `gain`.
        best_step: step of the weights that were returned.
        seconds: wall time.
        status: how the stage ended.
        gain: where held-out rows were scored by their likelihood, and `validation` is minus their mean log density in nats per
            dimension of the whitened rows: the mean gain of their log density over the reference at its best, in nats, and its
            standard error. None where `validation` is the training loss on other rows.
    """

    step: tuple[int, ...] = ()
    train: tuple[float, ...] = ()
    validation: tuple[float, ...] = ()
    best_step: int = 0
    seconds: float = 0.0
    status: Status = "completed"
    gain: tuple[float, float] | None = None

    @classmethod
    def read(cls, record: dict[str, Any]) -> Self:
        """The history of a record in JSON, which has lists for tuples."""
        series: dict[str, Any] = {name: tuple(record[name]) for name in ("step", "train", "validation")}
        return cls(**record | series)

    def extended(self, step: int, train: float, validation: float) -> "History":
        """The history with one more entry in each series."""
        return dataclasses.replace(
            self, step=(*self.step, step), train=(*self.train, train), validation=(*self.validation, validation)
        )

    @property
    def learned(self) -> bool:
        """Whether a step was done."""
        return bool(self.step) and self.step[-1] > 0

    @property
    def ending(self) -> str:
        """How the stage ended, in words."""
        if self.status == "nothing to learn":
            return "nothing to learn, since the network adds no velocity: a head of zero is exact"
        if self.gain is not None and self.best_step == 0 and self.status != "interrupted":
            return f"{self.status}; held-out rows do not gain enough over the reference, so it is used as it is"
        if self.status == "stopped early":
            return f"stopped early, since the validation loss had not improved after step {self.best_step}"
        return "ran all steps" if self.status == "completed" else f"interrupted at step {self.step[-1]}"

    def so_far(self) -> str:
        """What becomes of the module if training is interrupted now, as the end of a sentence."""
        return f"going on with the best weights so far, those of step {self.best_step}"

    def arrays(self) -> dict[str, np.ndarray]:
        """The three series as arrays."""
        return {name: np.asarray(getattr(self, name)) for name in ("step", "train", "validation")}


class TrainingDiverged(FloatingPointError, Generic[Module]):
    """A loss became NaN or infinite. Nothing is lost: `best` holds the last good weights.

    Attributes:
        step: the step by which the loss was no longer finite.
        best: the module with the lowest validation loss before that.
        history: the losses so far.
    """

    def __init__(self, stage: str, step: int, learning_rate: float | None, best: Module, history: History):
        lower = "" if learning_rate is None else f"learning_rate={learning_rate / 3:.1g}"
        super().__init__(
            f"The {stage} loss was no longer finite by step {step}. The usual causes are a learning rate that is too "
            f"high and rows far outside the bulk of the data. The weights of step {history.best_step}, the best "
            f"until then, are in this exception's `best`. Fix: training = fd.Training({lower})"
        )
        self.step = step
        self.best = best
        self.history = history


def train(
    key: Key,
    module: Module,
    loss: Callable[..., Scalar],
    validate: Callable[..., Scalar],
    args: Any,
    schedule: Schedule,
    *,
    stage: str,
    progress: bool,
    checkpoint: Checkpoint | None = None,
) -> Iterator[tuple[Module, History]]:
    """Minimize `loss(module, key, args)`, and yield the averaged weights that do best on `validate(module, args)`.

    Both are compiled once for all fits: `loss` and `validate` are functions of a module, or equinox modules whose configuration
    is static, so those of two fits are equal; whatever differs between fits of one shape is in `args`. Another `schedule` is
    compiled anew unless it differs in its `patience` or `stop` alone.

    With a checkpoint, everything is saved at each validation, and a stage that finds its file resumes from there.

    Args:
        key: JAX PRNG key of the losses.
        module: equinox module; its floating-point arrays are trained.
        loss: stochastic training loss.
        validate: deterministic validation loss.
        args: whatever both need; it stays on the device.
        schedule: how long and how fast.
        stage: what the progress bar and the errors call this.
        progress: whether to show a bar with step, losses and time left.
        checkpoint: where to save what has been done.

    Yields:
        The best module so far and its history: first the module as it came, then each that does better, and last the result.

    Raises:
        KeyboardInterrupt: after a last result, with a note of the step.
        TrainingDiverged: a loss was not finite.
    """
    params, static = eqx.partition(module, eqx.is_inexact_array)
    fixed = (loss, static, args, dataclasses.replace(schedule, patience=None, stop=None))
    history = History()
    started = time.monotonic()
    best, best_loss, complete = params, np.inf, False
    if schedule.optimizer is not None:
        operations = _operations(schedule.optimizer, params)
        checkpoint = checkpoint and checkpoint.narrowed(*operations)
    carry = jax.tree.map(jnp.copy, (params, params, schedule.make_optimizer().init(params), jnp.zeros((), int)))
    saved = checkpoint and checkpoint.read(stage, (key, carry, best))
    if saved:
        record, (key, carry, best) = saved
        history, best_loss, complete = History.read(record["history"]), record["best_loss"], record["complete"]

    done = history.step[-1] if history.step else 0
    end, before = schedule.stop or schedule.steps, history.seconds
    with tqdm(total=end, initial=done, desc=stage, unit="step", postfix="compiling", disable=not progress) as bar:
        try:
            yield eqx.combine(best, static), history
            if not history.step:
                best_loss = float(_evaluate(validate, static, args, best))
                history = history.extended(0, best_loss, best_loss)
            while done < end and not complete:
                chunk = min(schedule.every, end - done)
                key, subkey = jr.split(key)
                carry, value = _advance(fixed, carry, jr.split(subkey, chunk))
                done += chunk
                average = jax.tree.map(jnp.copy, carry[1])
                value, validation = float(value), float(_evaluate(validate, static, args, average))
                if not (np.isfinite(value) and np.isfinite(validation)):
                    rate = None if schedule.optimizer else schedule.learning_rate
                    raise TrainingDiverged(stage, done, rate, eqx.combine(best, static), history)
                history = history.extended(done, value, validation)
                history = dataclasses.replace(history, seconds=before + time.monotonic() - started)
                if schedule.patience is None or validation < best_loss:
                    best, best_loss = average, validation
                    history = dataclasses.replace(history, best_step=done)
                    yield eqx.combine(best, static), history
                bar.set_postfix(train=f"{value:.4f}", validation=f"{validation:.4f}", refresh=False)
                bar.update(chunk)
                if schedule.patience and done - history.best_step >= schedule.patience:
                    history, complete = dataclasses.replace(history, status="stopped early"), True
                if checkpoint:
                    record = {"history": asdict(history), "best_loss": best_loss, "complete": complete}
                    checkpoint.write(stage, record, (key, carry, best))
            yield eqx.combine(best, static), history
        except KeyboardInterrupt as interrupt:
            yield eqx.combine(best, static), dataclasses.replace(history, status="interrupted")
            interrupt.add_note(f"The {stage} was interrupted at step {done} of {end}")
            raise


def _operations(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, ...]:
    """What an optimizer does to some weights, as values that are equal in another process.

    Raises:
        TypeError: if it needs more than gradients, weights and the value of the loss.
    """
    try:
        state = optimizer.init(params)
        update = optax.with_extra_args_support(optimizer).update
        operations = jax.make_jaxpr(lambda state: update(params, state, params, value=jnp.zeros(())))(state)
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            "Training expected an `optimizer` that updates any weights by their gradients; this one cannot be used "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}). Fix: training = fd.Training()"
        ) from error
    # Functions have another address in every process.
    return re.sub(r"0x[0-9a-f]+", "", str(operations)), *operations.consts, *jax.tree.leaves(state)


# Functions of this module, whose arguments are compared by value: JAX finds again what it has compiled for another fit, and
# keeps nothing of any fit.


@eqx.filter_jit(donate="all-except-first")
def _advance(fixed: tuple[Callable[..., Scalar], Any, Any, Schedule], carry: Any, keys: Key) -> tuple[Any, Scalar]:
    """A step for each key, and the mean loss."""
    loss, static, args, schedule = fixed
    optimizer = schedule.make_optimizer()

    def step(carry: Any, key: Key) -> tuple[Any, Scalar]:
        params, average, state, count = carry
        value, gradient = jax.value_and_grad(lambda p: loss(eqx.combine(p, static), key, args))(params)
        updates, state = optimizer.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        # Without the warm-up, the starting weights would still weigh exp(-steps / 1000).
        decay = jnp.minimum(schedule.ema, (1.0 + count) / (10.0 + count))
        average = optax.incremental_update(params, average, 1.0 - decay)
        return (params, average, state, count + 1), value

    carry, values = jax.lax.scan(step, carry, keys)
    return carry, jnp.mean(values)


@eqx.filter_jit
def _evaluate(validate: Callable[..., Scalar], static: Any, args: Any, params: Any) -> Scalar:
    return validate(eqx.combine(params, static), args)
