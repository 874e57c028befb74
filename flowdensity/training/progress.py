"""Showing what a fit is doing where there is no bar with steps."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm.auto import tqdm


@contextmanager
def activity(name: str, progress: bool) -> Iterator[None]:
    """Show the name of what is done in this block, and at its end how long that took.

    A KeyboardInterrupt in the block gets a note that names it, which `results.last` reads.

    Args:
        name: what is done, as it reads after "The".
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
