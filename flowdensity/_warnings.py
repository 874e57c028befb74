"""Warnings that point at the user's line, however deep in the package they are issued."""

import inspect
import os
import warnings
from types import FrameType

PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
"""Frames of files in this folder are skipped."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning at the innermost line of code outside this package.

    Python 3.12 offers this as `skip_file_prefixes`; 3.11 does not.
    """
    frame, level = inspect.currentframe(), 1
    while frame is not None and _is_ours(frame):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _is_ours(frame: FrameType) -> bool:
    return os.path.abspath(frame.f_code.co_filename).startswith(PACKAGE)
