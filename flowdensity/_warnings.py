"""Warnings that point to the user's line of code."""

import inspect
import os
import warnings
from types import FrameType

import equinox
import numpyro

SKIPPED = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, numpyro.__file__, equinox.__file__)
)
"""Folders whose frames are skipped. numpyro and equinox are among them because they call constructors for the user."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line of code outside this package, numpyro and equinox.

    Python 3.12 has `skip_file_prefixes` for this, but Python 3.11 does not.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_skipped(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_skipped(frame: FrameType) -> bool:
    return os.path.abspath(frame.f_code.co_filename).startswith(SKIPPED)
