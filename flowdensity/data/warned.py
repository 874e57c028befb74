"""What a fit warns of before it starts: the checks of a table, in their order."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from .._warnings import warn
from .columns import Columns, Finding
from .containers import Handed
from .edges import rows_at_edges
from .outliers import find_outliers, outlier_finding
from .relations import relations
from .resolution import lost_digits
from .singular import coincidences
from .tables import Table
from .undeclared import undeclared_bounds

EVENT_CHECKS: tuple[Callable[[Columns], Finding | None], ...] = (
    lost_digits,
    rows_at_edges,
    relations,
)
"""Checks of the events alone, beside those of outliers, of rows that coincide and of bounds."""


def warn_about_tables(caller: str, events: Table, contexts: Table, handed: Sequence[Handed]) -> None:
    """Warn of what makes a density learned from a table wrong, or unbounded.

    Args:
        caller: public function whose name the warnings carry.
        events: checked events.
        contexts: checked contexts, one for each event.
        handed: the arguments that these were read of, and the weights if there are any.
    """
    for finding in _findings(Columns("data", events, handed), Columns("context", contexts, handed)):
        warn(finding.text(caller))


def _findings(events: Columns, contexts: Columns) -> Iterator[Finding]:
    regular, every = np.ones(len(events.rows), bool), events
    for columns in (events, contexts) if contexts.count else (events,):
        if found := find_outliers(columns):
            yield outlier_finding(columns, found)
            regular &= ~np.any([outlier.rows for outlier in found], axis=0)
    # The other checks would report outliers again, as ties or as relations.
    if not regular.all() and events.only(regular).vary and contexts.only(regular).vary:
        events, contexts = events.only(regular), contexts.only(regular)
    if contexts.count and (finding := lost_digits(contexts)):
        yield finding
    if finding := coincidences(events, contexts):
        yield finding
    yield from (finding for check in EVENT_CHECKS if (finding := check(events)))
    # A support has to hold for outliers too, which may be left in.
    if finding := undeclared_bounds(every):
        yield finding
