"""A fit is a sequence of ever better results: whatever ends it early, the last of them is kept.

Each stage is a generator. It yields a result and a record of it as soon as there is one, and again whenever there is a better
one; the last is what the stage is for. So Ctrl-C loses nothing that was learned, wherever it comes.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Protocol, TypeVar

from .._warnings import warn
from .loop import TrainingDiverged


class Record(Protocol):
    """What is known about a result."""

    @property
    def learned(self) -> bool:
        """Whether at least one step of training went into the result."""
        ...

    def so_far(self) -> str:
        """What becomes of the result if the fit is interrupted now, as the end of a sentence."""
        ...


Result = TypeVar("Result")
Kept = TypeVar("Kept", bound=Record)
Inner = TypeVar("Inner")
Outer = TypeVar("Outer")


def relay(results: Iterator[Inner], make: Callable[[Inner], Outer | None]) -> Generator[Outer, None, Inner]:
    """Yield what `make` makes of each result, unless that is None, and return the last result: `last = yield from relay(...)`."""
    latest = None
    for result in results:
        latest, made = result, make(result)
        if made is not None:
            yield made
    assert latest is not None, "a stage yields at least once"
    return latest


def final(results: Iterator[Inner]) -> Inner:
    """The last of some results that are of no use until then."""
    return deque(results, maxlen=1)[0]


def last(results: Iterator[tuple[Result, Kept]]) -> tuple[Result, Kept]:
    """The last of some results. A KeyboardInterrupt gives the last until then, with a warning.

    Raises:
        KeyboardInterrupt: if nothing has been learned yet, so that nothing is lost.
        TrainingDiverged: with the last result until then in its `best`.
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


def until_interrupted(results: Iterator[tuple[Result, Kept]]) -> Iterator[tuple[Result, Kept]]:
    """The same results. A KeyboardInterrupt ends them, with a warning, and not the stages that come after.

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
    """Warn of an interrupt whose fit has a result; raise the interrupt again where it has none."""
    if latest is None or not latest[1].learned:
        raise interrupt
    what, *_ = *getattr(interrupt, "__notes__", ()), "The fit was interrupted"
    warn(f"{what}; {latest[1].so_far()}.")
