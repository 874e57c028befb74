"""The training loop shared by every stage of every fit."""

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
from .._typing import Array, Key, Scalar
from .checkpoints import Checkpoint

Module = TypeVar("Module")
VALIDATIONS = 25
"""Number of validations in each stage."""

Status = Literal["completed", "stopped early", "interrupted", "nothing to learn"]


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training run.

    Args:
        steps: maximum number of optimizer steps.
        learning_rate: peak of a cosine schedule with a short warm-up.
        patience: stop after this many steps without an improvement of the validation loss and return the best weights. With None,
            which suits losses with unlimited fresh data, all steps are run and the last weights are returned.
        optimizer: optimizer to use, unchanged, instead of AdamW; None for AdamW.
        tolerance: the last weights are returned instead of the best ones unless their validation loss is larger by more than
            this many standard errors of the difference. The last weights were trained with the smallest learning rate, and the
            smallest of many noisy losses is often so by chance.
        stop: end after this many steps of the schedule; None for all steps.
        ema: decay of the exponential moving average of the weights. It is warmed up with the number of steps.
        clip: global norm at which gradients are clipped.
        weight_decay: decoupled weight decay of arrays with more than one axis: matrices, and the vectors of networks that are
            trained side by side. Scalars and other vectors, such as those that describe the data, do not decay.
    """

    steps: int
    learning_rate: float
    patience: int | None
    optimizer: optax.GradientTransformation | None = None
    tolerance: float = 0.0
    stop: int | None = None
    ema: float = 0.999
    clip: float = 1.0
    weight_decay: float = 1e-4

    @property
    def every(self) -> int:
        """Steps from one validation to the next."""
        return max(1, self.steps // VALIDATIONS)

    def make_optimizer(self) -> optax.GradientTransformationExtraArgs:
        """Return the given optimizer, or AdamW with clipped gradients."""
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
    """Losses of one stage, as three series of equal length.

    Attributes:
        step: number of optimizer steps taken.
        train: mean training loss since the previous entry. The first entry precedes any step and repeats `validation`.
        validation: loss on held-out rows or on fresh draws; minus the log density of held-out rows if there is a `gain`.
        best_step: step of the weights that were returned.
        seconds: wall time.
        status: how the stage ended.
        gain: mean gain in log density of held-out rows over the reference at the best step, in nats, and its standard error.
            It is set if held-out rows are scored by their likelihood; `validation` is then minus their mean log density in nats
            per dimension of the whitened rows. None if `validation` is the training loss on other rows.

    Examples:
        >>> history = report.histories["flow"]
        >>> history.best_step, history.validation[-1]
        >>> history.ending
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
        """Read a history from a JSON record, in which tuples are lists."""
        series: dict[str, Any] = {name: tuple(record[name]) for name in ("step", "train", "validation")}
        return cls(**record | series)

    def extended(self, step: int, train: float, validation: float) -> "History":
        """Return the history with one more entry in each series."""
        return dataclasses.replace(
            self, step=(*self.step, step), train=(*self.train, train), validation=(*self.validation, validation)
        )

    @property
    def learned(self) -> bool:
        """Whether at least one step was taken."""
        return bool(self.step) and self.step[-1] > 0

    @property
    def ending(self) -> str:
        """How the stage ended, in words."""
        if self.status == "nothing to learn":
            return "nothing to learn: the network adds no velocity, so a divergence head of zero is exact"
        if self.learned and self.best_step == 0 and self.status != "interrupted":
            return f"{self.status}; training did not improve held-out rows, so the reference is used unchanged"
        if self.status == "stopped early":
            smallest = self.step[int(np.argmin(self.validation))]
            return f"stopped early, since the validation loss had not improved after step {smallest}"
        return "ran all steps" if self.status == "completed" else f"interrupted at step {self.step[-1]}"

    def so_far(self) -> str:
        """Say which weights are used if training is interrupted now, as the end of a sentence."""
        return f"the fit continues with the best weights so far, from step {self.best_step}"

    def arrays(self) -> dict[str, np.ndarray]:
        """The three series as arrays."""
        return {name: np.asarray(getattr(self, name)) for name in ("step", "train", "validation")}


NOTHING_TO_LEARN = History((0,), (0.0,), (0.0,), status="nothing to learn")
"""History of a stage that has nothing to learn."""


class TrainingDiverged(FloatingPointError, Generic[Module]):
    """Error for a loss that became NaN or infinite. The last good weights are in `best`.

    Attributes:
        step: the step at which the loss was found not to be finite.
        best: the module with the lowest validation loss before that step.
        history: the losses so far.

    Examples:
        >>> try:
        ...     density, report = fd.fit_flow(key, data)
        ... except fd.TrainingDiverged as error:
        ...     density = error.best
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
    validate: Callable[..., Array],
    args: Any,
    schedule: Schedule,
    *,
    stage: str,
    progress: bool,
    checkpoint: Checkpoint | None = None,
) -> Iterator[tuple[Module, History]]:
    """Minimize `loss(module, key, args)` and yield the averaged weights with the best mean of `validate(module, args)`.

    Both functions are compiled once for all fits. They must be functions of a module, or equinox modules with a static
    configuration, so that those of two fits compare equal. Everything that differs between fits of the same shape belongs in
    `args`. A different `schedule` is compiled again unless it differs only in its `patience`, `tolerance` or `stop`.

    With a checkpoint, the whole state is saved at each validation, and a stage whose file exists resumes from it.

    Args:
        key: JAX PRNG key of the losses.
        module: equinox module; its floating-point arrays are trained.
        loss: stochastic training loss.
        validate: deterministic validation loss, or its terms, whose differences between two modules have a standard error.
        args: the arguments that both functions need; they stay on the device.
        schedule: length and learning rate of the training.
        stage: name of the stage in the progress bar and in errors.
        progress: whether to show a bar with step, losses and time left.
        checkpoint: where to save the state.

    Yields:
        The best module so far and its history: first the initial module, then each improved one, and finally the result.

    Raises:
        KeyboardInterrupt: after a last result, with a note that gives the step.
        TrainingDiverged: if a loss is not finite.
    """
    params, static = eqx.partition(module, eqx.is_inexact_array)
    fixed = (loss, static, args, dataclasses.replace(schedule, patience=None, tolerance=0.0, stop=None))
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

    def terms(params: Any) -> np.ndarray:
        return np.asarray(_evaluate(validate, static, args, params), np.float64)

    done = history.step[-1] if history.step else 0
    end, before = schedule.stop or schedule.steps, history.seconds
    with tqdm(total=end, initial=done, desc=stage, unit="step", postfix="compiling", disable=not progress) as bar:
        try:
            yield eqx.combine(best, static), history
            if not history.step:
                best_loss = float(np.mean(terms(best)))
                history = history.extended(0, best_loss, best_loss)
            while done < end and not complete:
                chunk = min(schedule.every, end - done)
                key, subkey = jr.split(key)
                carry, value = _advance(fixed, carry, jr.split(subkey, chunk))
                done += chunk
                average = jax.tree.map(jnp.copy, carry[1])
                value, validation = float(value), float(np.mean(terms(average)))
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
            if schedule.tolerance and 0 < history.best_step < done:
                excess = terms(carry[1]) - terms(best)
                if np.mean(excess) <= schedule.tolerance * np.std(excess) / np.sqrt(excess.size):
                    best, history = jax.tree.map(jnp.copy, carry[1]), dataclasses.replace(history, best_step=done)
            yield eqx.combine(best, static), history
        except KeyboardInterrupt as interrupt:
            yield eqx.combine(best, static), dataclasses.replace(history, status="interrupted")
            interrupt.add_note(f"The {stage} was interrupted at step {done} of {end}")
            raise


def _operations(optimizer: optax.GradientTransformation, params: Any) -> tuple[Any, ...]:
    """The operations of an optimizer on some weights, as values that are equal in another process.

    Raises:
        TypeError: if the optimizer needs more than gradients, weights and the value of the loss.
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
    # The printed address of a function differs between processes.
    return re.sub(r"0x[0-9a-f]+", "", str(operations)), *operations.consts, *jax.tree.leaves(state)


# These are functions of the module, and their arguments are compared by value. JAX therefore reuses what it compiled for another
# fit and holds no reference to any fit.


@eqx.filter_jit(donate="all-except-first")
def _advance(fixed: tuple[Callable[..., Scalar], Any, Any, Schedule], carry: Any, keys: Key) -> tuple[Any, Scalar]:
    """Take a step for each key, and return the mean loss."""
    loss, static, args, schedule = fixed
    optimizer = schedule.make_optimizer()

    def step(carry: Any, key: Key) -> tuple[Any, Scalar]:
        params, average, state, count = carry
        value, gradient = jax.value_and_grad(lambda p: loss(eqx.combine(p, static), key, args))(params)
        updates, state = optimizer.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        # Without the warm-up, the initial weights would still have the weight exp(-steps / 1000) in the average.
        decay = jnp.minimum(schedule.ema, (1.0 + count) / (10.0 + count))
        average = optax.incremental_update(params, average, 1.0 - decay)
        return (params, average, state, count + 1), value

    carry, values = jax.lax.scan(step, carry, keys)
    return carry, jnp.mean(values)


@eqx.filter_jit
def _evaluate(validate: Callable[..., Array], static: Any, args: Any, params: Any) -> Array:
    return validate(eqx.combine(params, static), args)
