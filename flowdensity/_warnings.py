"""Warnings that point at the user's line, however deep in the package they are issued."""

import inspect
import os
import warnings
from types import FrameType

import equinox
import numpyro

SKIPPED = tuple(
    os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, numpyro.__file__, equinox.__file__)
)
"""Frames of files in these folders are skipped: numpyro and equinox call constructors in the user's place."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line of code outside this package, numpyro and equinox.

    Python 3.12 offers this as `skip_file_prefixes`; 3.11 does not.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_skipped(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_skipped(frame: FrameType) -> bool:
    return os.path.abspath(frame.f_code.co_filename).startswith(SKIPPED)
