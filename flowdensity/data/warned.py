"""Warnings before a fit: runs all checks of the tables, in order."""

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
"""Checks that only need the events; outliers, coincident rows and undeclared bounds are checked separately."""


def warn_about_tables(caller: str, events: Table, contexts: Table, handed: Sequence[Handed]) -> None:
    """Warn about tables from which a learned density would be wrong or unbounded.

    Args:
        caller: public function named in the warnings.
        events: checked events.
        contexts: checked contexts, one for each event.
        handed: the arguments from which the tables were read, and the weights if there are any.
    """
    for finding in _findings(Columns("data", events, handed), Columns("context", contexts, handed)):
        warn(finding.text(caller))


def _findings(events: Columns, contexts: Columns) -> Iterator[Finding]:
    regular, every = np.ones(len(events.rows), bool), events
    for columns in (events, contexts) if contexts.count else (events,):
        if found := find_outliers(columns):
            yield outlier_finding(columns, found)
            regular &= ~np.any([outlier.rows for outlier in found], axis=0)
    # Leave out the outliers: the other checks would report them again, as ties or as relations.
    if not regular.all() and events.only(regular).vary and contexts.only(regular).vary:
        events, contexts = events.only(regular), contexts.only(regular)
    if contexts.count and (finding := lost_digits(contexts)):
        yield finding
    if finding := coincidences(events, contexts):
        yield finding
    yield from (finding for check in EVENT_CHECKS if (finding := check(events)))
    # Check the bounds of all rows, because a support must also contain the outliers if the user keeps them.
    if finding := undeclared_bounds(every):
        yield finding
