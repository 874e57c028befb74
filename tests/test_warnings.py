import inspect
import warnings

import pytest

from flowdensity._warnings import warn


def line_of(call):
    """File and line that the only warning of a call points at."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (only,) = caught
    return only.filename, only.lineno


def here(offset=0):
    return __file__, inspect.currentframe().f_back.f_lineno + offset


def test_a_warning_points_at_the_line_outside_the_package():
    line = None

    def call():
        nonlocal line
        line = here(1)
        warn("anything")

    assert line_of(call) == line


def test_a_category_is_passed_on():
    with pytest.warns(DeprecationWarning, match="old"):
        warn("old", DeprecationWarning)
