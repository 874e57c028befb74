"""Rows that JAX's default dtype reads at an edge of their support: the fit says so, with a line that runs."""

import numpy as np
import pytest
import scipy.special
from numpyro.distributions import constraints
from references import x64

from flowdensity.data.columns import Columns
from flowdensity.data.containers import read
from flowdensity.data.edges import rows_at_edges
from flowdensity.data.tables import event_table

ROWS = 2000
GAMMA = np.maximum(np.random.default_rng(0).gamma(0.2, size=ROWS), 1e-12)
BETA = np.clip(np.random.default_rng(1).beta(0.2, 0.2, ROWS), 1e-12, 1.0 - 1e-12)
SMALL = np.maximum(np.random.default_rng(2).gamma(0.02, size=ROWS), 1e-300)
SHARES = np.maximum(np.random.default_rng(3).dirichlet([0.02] * 3, ROWS), 1e-200)


def said(data, support) -> list[str]:
    """What a fit says about the edges of a table."""
    table = event_table("fit_flow", data, support)
    finding = rows_at_edges(Columns("data", table, [read("fit_flow", "data", data)]))
    return [] if finding is None else [finding.text("fit_flow")]


# name: (data, support, the line that mends it)
FAR = {
    "an interval": (100.0 + BETA, constraints.interval(100.0, 101.0), "data = data - 100.0"),
    "a lower edge": (100.0 + GAMMA, constraints.greater_than(100.0), "data = data - 100.0"),
    "an upper edge": (100.0 - GAMMA, constraints.less_than(100.0), "data = data - 100.0"),
    "the upper end of an interval": (
        1.0 - np.maximum(GAMMA**2 / 1e4, 1e-14),
        constraints.unit_interval,
        "data = data - 1.0",
    ),
    "one of two named sites": (
        {"a": BETA, "b": 100.0 + BETA},
        {"b": constraints.interval(100.0, 101.0)},
        "data['b'] = data['b'] - 100.0",
    ),
    "one of two columns": (
        np.stack([BETA, -50.0 + GAMMA], axis=1),
        [constraints.real, constraints.greater_than(-50.0)],
        "data[:, 1] = data[:, 1] - -50.0",
    ),
    "numbers below the smallest of float32": (SMALL, constraints.positive, "data = numpy.log(data)"),
    "shares below the smallest of float32": (SHARES, constraints.simplex, "data = numpy.log(data[..., :-1]"),
}


@pytest.mark.parametrize(("data", "support", "line"), FAR.values(), ids=FAR)
def test_rows_at_an_edge_are_counted_and_the_line_mends_it(data, support, line):
    (message,) = said(data, support)
    assert "% of the rows rounded to an edge" in message
    fix = message.partition("Fix: ")[2]
    assert fix.startswith(line)
    space = {"data": data, "support": support, "numpy": np, "constraints": constraints, "scipy": scipy}
    exec(fix, space)
    assert not said(space["data"], space["support"])


def test_rows_that_are_told_from_the_edges_are_left_alone():
    rng = np.random.default_rng(4)
    for data, support in (
        (BETA, constraints.unit_interval),
        (100.0 + rng.beta(2.0, 2.0, ROWS), constraints.interval(100.0, 101.0)),
        (rng.lognormal(size=ROWS), constraints.positive),
        (rng.dirichlet(np.ones(3), ROWS), constraints.simplex),
        (1e6 + rng.normal(size=ROWS), None),
    ):
        assert not said(data, support)


def test_in_64_bits_nothing_is_lost():
    with x64():
        assert not said(*FAR["an interval"][:2])


def test_a_row_on_the_last_edge_of_a_simplex_is_refused():
    """As on the other edges: the sum tells nothing about how small the last share is."""
    for edge in range(3):
        rows = np.random.default_rng(5).dirichlet(np.ones(3), 50)
        rows[7] = np.insert([0.25, 0.75], edge, 0.0)
        with pytest.raises(ValueError, match=r"(?s)inside the support .*at index 7, and 1 such rows"):
            event_table("fit_flow", rows, constraints.simplex)
