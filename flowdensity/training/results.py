"""Stages of a fit, whose results survive an interrupt.

Each stage is a generator. It yields its first result with a record of it, and yields again whenever the result improves; the
last result is the stage's outcome. Ctrl-C therefore loses nothing that was learned, no matter when it comes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from tqdm.auto import tqdm

from .._warnings import warn
from .loop import TrainingDiverged


class Record(Protocol):
    """Record that a stage keeps of its result."""

    @property
    def learned(self) -> bool:
        """Whether the result includes at least one training step."""
        ...

    def so_far(self) -> str:
        """Say what happens to the result if the fit is interrupted now, as the end of a sentence."""
        ...


Result = TypeVar("Result")
AnyRecord = TypeVar("AnyRecord", bound=Record)
Inner = TypeVar("Inner")
Outer = TypeVar("Outer")


@contextmanager
def activity(name: str, progress: bool) -> Iterator[None]:
    """Show the name of an activity that has no steps to count, and finally how long it took.

    A KeyboardInterrupt in the block gets a note with the name, for the warning about the interrupt.

    Args:
        name: name of the activity, as it reads after "The".
        progress: whether to show it.
    """
    with tqdm(desc=name, bar_format="{desc}: {elapsed}", disable=not progress) as line:
        try:
            yield
        except BaseException as error:
            line.leave = False
            if isinstance(error, KeyboardInterrupt):
                error.add_note(f"The {name} was interrupted")
            raise


def relay(results: Iterator[Inner], make: Callable[[Inner], Outer | None]) -> Generator[Outer, None, Inner]:
    """Yield `make(result)` for each result unless it is None, and return the last result.

    A stage calls it on the stage that it builds on: `inner = yield from relay(results, make)`.
    """
    latest = None
    for result in results:
        latest, made = result, make(result)
        if made is not None:
            yield made
    assert latest is not None, "a stage yields at least once"
    return latest


def final(results: Iterator[Inner]) -> Inner:
    """Return the last result of a stage whose earlier results are of no use."""
    return deque(results, maxlen=1)[0]


def last(results: Iterator[tuple[Result, AnyRecord]]) -> tuple[Result, AnyRecord]:
    """Return the last result; after a KeyboardInterrupt, the last one so far, with a warning.

    Raises:
        KeyboardInterrupt: if nothing has been learned yet, so that nothing is lost.
        TrainingDiverged: with the last result so far as its `best`.
    """
    latest = None
    try:
        for result in results:
            latest = result
    except KeyboardInterrupt as interrupt:
        _warn_of(interrupt, latest)
    except TrainingDiverged as error:
        if latest is not None:
            error.best = latest[0]
        raise
    assert latest is not None, "a stage yields at least once"
    return latest


def until_interrupted(results: Iterator[tuple[Result, AnyRecord]]) -> Iterator[tuple[Result, AnyRecord]]:
    """Yield the results. A KeyboardInterrupt ends this stage with a warning, and later stages still run.

    Raises:
        KeyboardInterrupt: if nothing has been learned yet.
    """
    latest = None
    try:
        for result in results:
            latest = result
            yield latest
    except KeyboardInterrupt as interrupt:
        _warn_of(interrupt, latest)


def _warn_of(interrupt: KeyboardInterrupt, latest: tuple[object, Record] | None) -> None:
    """Warn about an interrupt if there is a result; otherwise raise the interrupt again."""
    if latest is None or not latest[1].learned:
        raise interrupt
    # `activity` notes which activity was interrupted.
    what, *_ = *getattr(interrupt, "__notes__", ()), "The fit was interrupted"
    warn(f"{what}; {latest[1].so_far()}.")
