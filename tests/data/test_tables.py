"""Bad input is refused before any work, with a message that says what to do."""

import re

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pandas as pd
import pytest
from numpyro.distributions import biject_to, constraints
from references import EPS32, gaussian_flow, patch_everywhere, untrained_flow

import flowdensity as fd
from flowdensity.data.scaling import fit_scaling, standardize
from flowdensity.data.sites import Sites
from flowdensity.data.tables import Sample, context_table, effective_rows, event_table, weight_table

ROWS = np.random.default_rng(0).normal(size=(10, 2))
CONTEXTS = np.random.default_rng(1).normal(size=(10, 3))
NAMED = {"a": ROWS[:, 0], "b": ROWS, "tau": np.exp(ROWS[:, 1])}


def put(table: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    table = table.copy()
    table[index] = value
    return table


SHARES = np.linspace(0.1, 0.9, 10)

# name: (error, the argument that the message names, what the message must say, data, other arguments)
BAD = {
    "nan": (ValueError, "data", r"finite.*\(3, 1\)", put(ROWS, (3, 1), np.nan), {}),
    "infinite": (ValueError, "data", r"finite.*\(0, 0\)", put(ROWS, (0, 0), -np.inf), {}),
    "one row": (ValueError, "data", r"n >= 2; got \(1, 2\)", ROWS[:1], {}),
    "no rows": (ValueError, "data", r"n >= 2; got \(0, 2\)", ROWS[:0], {}),
    "no columns": (ValueError, "data", r"got \(10, 0\)", ROWS[:, :0], {}),
    "a single number": (ValueError, "data", r"got \(\)", 3.0, {}),
    "constant column": (ValueError, "data", "got column 1 of .* constant", put(ROWS, np.s_[:, 1], 7.0), {}),
    "constant in single precision": (
        ValueError,
        "data",
        "got column 0 of .* constant",
        put(ROWS, np.s_[:, 0], 1e6 + 1e-6 * np.arange(10)),
        {},
    ),
    "constant 1-D": (ValueError, "data", "got column 0 of .* constant", np.ones(10), {}),
    "objects": (TypeError, "data", "object", np.array([[object()], [object()]]), {}),
    "None": (TypeError, "data", "NoneType", None, {}),
    "ragged rows": ((TypeError, ValueError), "data", "", [[1.0, 2.0], [3.0]], {}),
    "complex": (TypeError, "data", "complex128", ROWS + 1j, {}),
    "strings": (TypeError, "data", "<U", np.array([["a", "b"], ["c", "d"]]), {}),
    "dates": (TypeError, "data", "datetime64", np.array(["2020-01-01", "2020-01-02"], "M8[D]"), {}),
    "zero off a positive support": (
        ValueError,
        "data",
        r"support.*got 0\.0 at index \(2, 0\)",
        put(np.abs(ROWS), (2, 0), 0.0),
        {"support": constraints.positive},
    ),
    "beyond the unit interval": (
        ValueError,
        "data",
        r"support.*1\.5 at index \(4, 1\)",
        put(0.5 + 0.01 * ROWS, (4, 1), 1.5),
        {"support": constraints.unit_interval},
    ),
    "off the simplex": (
        ValueError,
        "data",
        r"support.*index \(0,\)",
        np.abs(ROWS),
        {"support": constraints.simplex},
    ),
    "1-D data for a vector support": (
        ValueError,
        "data",
        r"at least 1 axes",
        np.linspace(0.1, 0.9, 10),
        {"support": constraints.simplex},
    ),
    "context rows": (ValueError, "context", r"\(10, \.\.\.\).*got \(9, 3\)", ROWS, {"context": CONTEXTS[:9]}),
    "context number": (ValueError, "context", r"got \(\)", ROWS, {"context": 1.0}),
    "context without columns": (ValueError, "context", r"got \(10, 0\)", ROWS, {"context": CONTEXTS[:, :0]}),
    "context nan": (ValueError, "context", r"\(5, 2\)", ROWS, {"context": put(CONTEXTS, (5, 2), np.nan)}),
    "context constant": (
        ValueError,
        "context",
        "got column 0 of .* constant",
        ROWS,
        {"context": put(CONTEXTS, np.s_[:, 0], 1.0)},
    ),
    "context strings": (TypeError, "context", "<U", ROWS, {"context": np.array(["a"] * 10)}),
    "context objects": (TypeError, "context", "object", ROWS, {"context": np.array([object()] * 10)}),
    "named nan": (
        ValueError,
        r"data\['b'\]",
        r"nan at index \(3, 1\), and 1 such rows of 10",
        NAMED | {"b": put(ROWS, (3, 1), np.nan)},
        {},
    ),
    "named off its support": (
        ValueError,
        r"data\['tau'\]",
        r"Positive.*got -1\.0 at index \(4,\), and 1 such entries",
        NAMED | {"tau": put(NAMED["tau"], (4,), -1.0)},
        {"support": {"tau": constraints.positive}},
    ),
    "named off its simplex": (
        ValueError,
        r"data\['b'\]",
        r"Simplex.*at index \(0,\), and 10 such entries",
        NAMED,
        {"support": {"b": constraints.simplex}},
    ),
    "named numbers for a vector support": (
        ValueError,
        r"data\['a'\]",
        r"at least 1 axes.*got shape \(10,\)",
        NAMED,
        {"support": {"a": constraints.ordered_vector}},
    ),
    "named constant": (
        ValueError,
        r"data\['b'\]",
        "got column 1 of 2, which is constant",
        NAMED | {"b": put(ROWS, np.s_[:, 1], 3.0)},
        {},
    ),
    "named strings": (TypeError, r"data\['a'\]", "<U", NAMED | {"a": np.array(["x"] * 10)}, {}),
    "named number": (ValueError, r"data\['a'\]", r"got \(\)", NAMED | {"a": 1.0}, {}),
    "named rows that disagree": (
        ValueError,
        "data",
        r"the same number of rows for each site.*got \{'a': 9, 'b': 10, 'tau': 10\}",
        NAMED | {"a": ROWS[:9, 0]},
        {},
    ),
    "no names": (ValueError, "data", "at least one named value; got an empty container", {}, {}),
    "a frame off its support": (
        ValueError,
        r"data\['y'\]",
        r"at index \(2,\)",
        pd.DataFrame({"x": ROWS[:, 0], "y": put(NAMED["tau"], (2,), -2.0)}),
        {"support": {"y": constraints.positive}},
    ),
    "support of another name": (
        ValueError,
        "support",
        r"names in \['a', 'b', 'tau'\].*got \['sigma'\]",
        NAMED,
        {"support": {"sigma": constraints.positive}},
    ),
    "a list of supports for names": (
        ValueError,
        "support",
        "got list",
        NAMED,
        {"support": [constraints.real] * 4},
    ),
    "supports by name without names": (
        ValueError,
        "support",
        r"`data` has no names; got a dict with \['a'\]",
        ROWS,
        {"support": {"a": constraints.positive}},
    ),
    "too few supports": (
        ValueError,
        "support",
        r"got 1 for events of shape \(2,\)",
        ROWS,
        {"support": [constraints.positive]},
    ),
    "supports of a matrix's coordinates": (
        ValueError,
        "support",
        r"got 2 for events of shape \(1, 2\)",
        ROWS[:, None],
        {"support": [constraints.real] * 2},
    ),
    "one coordinate off its support": (
        ValueError,
        r"data\[:, 1\]",
        r"Positive.*at index \(5,\), and 1 such entries",
        put(np.abs(ROWS), (5, 1), -0.5),
        {"support": [constraints.real, constraints.positive]},
    ),
    "a vector support for a coordinate": (
        ValueError,
        r"data\[:, 0\]",
        "at least 1 axes",
        ROWS,
        {"support": [constraints.simplex, constraints.real]},
    ),
    "a support that is a number": (TypeError, "support", "constraint of numpyro; got float", ROWS, {"support": 1.0}),
    "one support that is none": (
        TypeError,
        r"support\[1\]",
        "constraint of numpyro; got NoneType",
        ROWS,
        {"support": [constraints.real, None]},
    ),
    "one named support that is none": (
        TypeError,
        r"support\['a'\]",
        "constraint of numpyro; got 'positive'",
        NAMED,
        {"support": {"a": "positive"}},
    ),
    "a circle": (ValueError, "support", "two endpoints; got Circular", ROWS, {"support": constraints.circular}),
    "integers by name": (
        ValueError,
        r"support\['tau'\]",
        "continuous.*IntegerNonnegative",
        NAMED,
        {"support": {"tau": constraints.nonnegative_integer}},
    ),
    "named context rows": (
        ValueError,
        r"context\['t'\]",
        r"\(10, \.\.\.\).*got \(9,\)",
        ROWS,
        {"context": {"s": CONTEXTS, "t": CONTEXTS[:9, 0]}},
    ),
    "named context nan": (
        ValueError,
        r"context\['s'\]",
        r"\(5, 2\)",
        ROWS,
        {"context": {"s": put(CONTEXTS, (5, 2), np.nan)}},
    ),
    "weights of other rows": (ValueError, "weights", r"\(10,\).*got \(9,\)", ROWS, {"weights": np.ones(9)}),
    "a column of weights": (ValueError, "weights", r"got \(10, 1\)", ROWS, {"weights": np.ones((10, 1))}),
    "a weight below zero": (
        ValueError,
        "weights",
        r"smallest weight of -0\.5",
        ROWS,
        {"weights": put(np.ones(10), (3,), -0.5)},
    ),
    "a weight that is not finite": (
        ValueError,
        "weights",
        r"nan at index \(3,\)",
        ROWS,
        {"weights": put(np.ones(10), (3,), np.nan)},
    ),
    "one weight above zero": (
        ValueError,
        "weights",
        "at least two of them positive; got .* and 1 nonzero weights",
        ROWS,
        {"weights": np.eye(10)[0]},
    ),
    "a column that is constant where weights are above zero": (
        ValueError,
        "data",
        r"got column 1 of 2.* in the rows with positive `weights`.*numpy\.delete\(data, 1, axis=1\)",
        put(ROWS, np.s_[:5, 1], 7.0),
        {"weights": np.arange(10) < 5},
    ),
    "a context that is constant where weights are above zero": (
        ValueError,
        "context",
        "got column 2 of 3, which is constant",
        ROWS,
        {"context": put(CONTEXTS, np.s_[:5, 2], 7.0), "weights": np.arange(10) < 5},
    ),
    "a network that is none": (TypeError, "network", "got 'mlp'", ROWS, {"network": "mlp"}),
    "a network of another size": (
        ValueError,
        "network",
        "for 2 dimensions and 0 of context; got one for 3 and 0",
        ROWS,
        {"network": fd.networks.ResidualMLP(jr.key(0), 3)},
    ),
    "on the edge of its support": (
        ValueError,
        "data",
        r"a density is not defined on its edge; got \[.*\] at index 2, and 1 such rows",
        put(np.abs(ROWS), (2, 0), 0.0),
        {"support": constraints.nonnegative},
    ),
    "one entry on the edge of the unit interval": (
        ValueError,
        r"data\[:, 1\]",
        r"a density is not defined on its edge; got 1\.0 at index 4, and 1 such rows",
        put(0.5 + 0.01 * ROWS, (4, 1), 1.0),
        {"support": [constraints.real, constraints.unit_interval]},
    ),
    "a vertex of the simplex": (
        ValueError,
        "data",
        r"a density is not defined on its edge; got \[0\. 1\.\] at index 3, and 1 such rows",
        put(np.column_stack([SHARES, 1.0 - SHARES]), (3,), [0.0, 1.0]),
        {"support": constraints.simplex},
    ),
    "a list of supports for numbers": (
        ValueError,
        "support",
        r"got 1 for events of shape \(\)\. Fix: support = constraints\.real",
        ROWS[:, 0],
        {"support": [constraints.real]},
    ),
    "weights that are words": (TypeError, "weights", "<U", ROWS, {"weights": np.array(["a"] * 10)}),
}


@pytest.fixture
def no_work(monkeypatch):
    """Fail if training, or even the whitening, is reached."""

    def reached(*args, **kwargs):
        pytest.fail("work began before the input was checked")

    for name in ("fit_scaling", "standardize", "train", "draw_matching"):
        patch_everywhere(monkeypatch, name, reached)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("error", "argument", "says", "data", "options"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_any_work(error, argument, says, data, options):
    with pytest.raises(error) as caught:
        fd.fit_flow(jr.key(0), data, **options, progress=False)
    message = str(caught.value)
    assert re.match(rf"fit_flow expected .*`{argument}`.*; got .+\. .*Fix: .+", message, re.DOTALL), message
    assert re.search(says, message), message


MODEL = untrained_flow(jr.key(0), ROWS)
CONDITIONAL_MODEL = untrained_flow(jr.key(0), ROWS, CONTEXTS)
DIVERGENCE_BAD = {
    "event shape": (ROWS[:, :1], None, "data", r"\(n, 2\).*got \(10, 1\)"),
    "context where none was learned": (ROWS, CONTEXTS, "context", r"got \(10, 3\)"),
    "non-finite": (put(ROWS, (1, 1), np.inf), None, "data", r"\(1, 1\)"),
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize(("data", "context", "argument", "says"), DIVERGENCE_BAD.values(), ids=DIVERGENCE_BAD.keys())
def test_fit_divergence_refuses_tables_that_do_not_fit_its_model(data, context, argument, says):
    model = MODEL
    with pytest.raises(ValueError, match=rf"(?s)fit_divergence expected .*`{argument}`.*{says}.*Fix: "):
        fd.fit_divergence(jr.key(0), model, data, context, progress=False)


@pytest.mark.usefixtures("no_work")
def test_fit_divergence_refuses_a_missing_context():
    model = CONDITIONAL_MODEL
    with pytest.raises(ValueError, match=r"fit_divergence expected `context`.*\(n, 3\).*got .*Fix: "):
        fd.fit_divergence(jr.key(0), model, ROWS, progress=False)


@pytest.mark.usefixtures("no_work")
def test_fit_divergence_refuses_what_is_not_a_probability_flow():
    with pytest.raises(TypeError, match=r"(?s)fit_divergence expected `model`.*got .*Fix: "):
        fd.fit_divergence(jr.key(0), fd.FlowDensity(gaussian_flow()), ROWS, progress=False)
    with pytest.raises(TypeError, match=r"(?s)fit_divergence expected `objective`.*got 'stein'.*Fix: "):
        fd.fit_divergence(jr.key(0), gaussian_flow(), ROWS, objective="stein", progress=False)


CASTS = {
    "integers": (np.arange(6).reshape(3, 2), (3, 2)),
    "unsigned bytes": (np.arange(6, dtype=np.uint8).reshape(3, 2), (3, 2)),
    "half precision": (np.arange(6, dtype=np.float16).reshape(3, 2), (3, 2)),
    "booleans": (np.array([[True], [False], [True]]), (3, 1)),
    "lists": ([[1, 2.5], [3, 4.5]], (2, 2)),
    "1-D": (np.arange(4), (4,)),
    "matrices": (np.arange(24.0).reshape(4, 2, 3), (4, 2, 3)),
    "a JAX array": (jnp.arange(6.0).reshape(3, 2), (3, 2)),
}


@pytest.mark.parametrize(("data", "shape"), CASTS.values(), ids=CASTS.keys())
def test_real_tables_are_cast_to_float64_with_equal_values(data, shape):
    for table in (event_table("fit_flow", data), context_table("fit_flow", data, len(data))):
        assert table.rows.dtype == np.float64
        assert table.rows.shape == shape
        assert table.sites is None
        np.testing.assert_array_equal(table.rows, np.asarray(data, float))


def test_values_keep_double_precision():
    data = 1e6 + np.array([0.0, 0.25, 0.5])  # float32 has a spacing of 0.06 there
    np.testing.assert_array_equal(event_table("fit_flow", data).rows, data)


def test_no_context_is_a_table_without_columns():
    assert context_table("fit_flow", None, 7).rows.shape == (7, 0)


def test_the_input_is_left_as_it_was():
    data = ROWS.copy()
    event_table("fit_flow", data).rows[0, 0] = 99.0
    np.testing.assert_array_equal(data, ROWS)


def test_rows_are_drawn_with_their_contexts():
    states = jnp.arange(20.0).reshape(10, 2)
    drawn = Sample(states, 10.0 * states[:, :1]).draw(jr.key(0), 3000)
    np.testing.assert_array_equal(drawn.contexts, 10.0 * drawn.states[:, :1])
    counts = np.bincount(np.asarray(drawn.states[:, 0] / 2, int), minlength=10)
    # Binomial(3000, 1/10): standard deviation 16.4.
    assert np.all(np.abs(counts - 300) < 4.5 * 16.4)


# Names, and supports for each of them ---------------------------------------------------------------


def test_named_values_lie_behind_each_other():
    table = event_table("fit_flow", NAMED, {"tau": constraints.positive})
    assert table.rows.dtype == np.float64
    assert table.sites == Sites(("a", "b", "tau"), ((), (2,), ()))
    np.testing.assert_array_equal(table.rows, np.column_stack([NAMED["a"], NAMED["b"], NAMED["tau"]]))
    # Those that are left out are real.
    np.testing.assert_array_equal(
        table.support(np.array([[-1.0, -1.0, -1.0, 1.0], [1.0, 1.0, 1.0, -1.0]])), [True, False]
    )


def test_one_support_is_that_of_every_name():
    table = event_table("fit_flow", {name: np.abs(rows) for name, rows in NAMED.items()}, constraints.positive)
    np.testing.assert_array_equal(table.support(np.ones((4, 4)) - 2.0 * np.eye(4)), [False] * 4)
    assert bool(table.support(np.ones((1, 4)))[0])


def test_supports_of_the_coordinates_are_those_of_names():
    rows = np.column_stack([ROWS[:, 0], NAMED["tau"]])
    listed = event_table("fit_flow", rows, [constraints.real, constraints.positive])
    named = event_table("fit_flow", {"a": ROWS[:, 0], "tau": NAMED["tau"]}, {"tau": constraints.positive})
    np.testing.assert_array_equal(listed.rows, named.rows)
    assert listed.support == named.support
    assert listed.sites is None


def test_named_contexts_lie_behind_each_other():
    table = context_table("fit_flow", {"s": CONTEXTS, "t": ROWS[:, 0]}, 10)
    assert table.sites == Sites(("s", "t"), ((3,), ()))
    np.testing.assert_array_equal(table.rows, np.column_stack([CONTEXTS, ROWS[:, 0]]))


# Weights ----------------------------------------------------------------------------------------------

COUNTS = np.array([3, 1, 0, 2, 1, 5, 0, 1, 4, 2])
"""Weights of the ten rows; as often is each row in REPEATED."""
REPEATED = np.repeat(ROWS, COUNTS, axis=0)


def test_weights_are_put_on_a_sum_of_one():
    weights = weight_table("fit_flow", COUNTS, 10)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, COUNTS / COUNTS.sum(), rtol=1e-15)
    assert weight_table("fit_flow", None, 10) is None


def test_rows_are_drawn_as_often_as_they_weigh():
    weights = jnp.asarray(COUNTS / COUNTS.sum(), float)
    states = jnp.arange(10.0)[:, None]
    sample = Sample(states, 10.0 * states, weights)
    drawn = jax.jit(lambda key: sample.draw(key, 10_000))(jr.key(0))
    assert drawn.weights is None
    np.testing.assert_array_equal(drawn.contexts, 10.0 * drawn.states)
    counts = np.bincount(np.asarray(drawn.states[:, 0], int), minlength=10)
    p = COUNTS / COUNTS.sum()
    # Binomial; rows that weigh nothing never come.
    assert np.all(np.abs(counts - 10_000 * p) <= 4.5 * np.sqrt(10_000 * p * (1.0 - p)))
    taken = sample.take(jnp.array([5, 2]))
    np.testing.assert_array_equal(taken.weights, weights[jnp.array([5, 2])])
    np.testing.assert_array_equal(taken.states, [[5.0], [2.0]])


def test_effective_rows_are_kishs():
    assert effective_rows(np.full(50, 0.02)) == 50
    assert effective_rows(3.0 * np.repeat([1.0, 0.0], [30, 70])) == 30
    assert effective_rows(COUNTS) == round(19**2 / np.sum(COUNTS**2)) == 6
    assert effective_rows(np.array([1.0, 1e-9])) == 2  # fewer could not be split
    states = jnp.zeros((10, 1))
    assert Sample(states, states).effective == 10
    assert Sample(states, states, jnp.asarray(COUNTS / 19.0)).effective == 6


@pytest.mark.parametrize("dim", [2, 300])
def test_weighted_whitening_is_that_of_repeated_rows(dim):
    """Up to the shrinkage of the correlations, which knows how many rows there are; not so above 256 dimensions."""
    rows = np.random.default_rng(5).normal(size=(10, dim)) @ np.triu(np.ones((dim, dim)))
    weighted, white = fit_scaling(rows, weights=COUNTS / COUNTS.sum())
    repeated, again = fit_scaling(np.repeat(rows, COUNTS, axis=0))
    # Rounded to float32 after sums in float64 in another order.
    np.testing.assert_allclose(weighted.location, repeated.location, rtol=2.0 * EPS32, atol=EPS32)
    for scaling in (weighted, repeated):
        scale = np.asarray(scaling.scale, np.float64)
        deviations = scale if dim > 256 else np.sqrt(np.diag(scale @ scale.T))
        np.testing.assert_allclose(deviations, np.repeat(rows, COUNTS, axis=0).std(0), rtol=8.0 * EPS32)
    np.testing.assert_allclose(COUNTS @ white / 19.0, 0.0, atol=1e-12)
    if dim > 256:
        np.testing.assert_allclose(np.repeat(white, COUNTS, axis=0), again, rtol=1e-11, atol=1e-11)


def test_weighted_contexts_are_standardized_as_repeated_rows():
    weighted, white = standardize(ROWS, weights=COUNTS / COUNTS.sum())
    repeated, again = standardize(REPEATED)
    np.testing.assert_allclose(np.repeat(white, COUNTS, axis=0), again, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=2.0 * EPS32)


def test_rows_that_weigh_nothing_are_as_if_they_were_not_there():
    """The shrinkage too, which depends on the number of rows."""
    rows = np.random.default_rng(6).normal(size=(30, 3)) @ np.triu(np.ones((3, 3)))
    keep = np.arange(30) % 3 > 0
    weighted, white = fit_scaling(rows, weights=keep / keep.sum())
    kept, expected = fit_scaling(rows[keep])
    np.testing.assert_allclose(white[keep], expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(weighted.scale, kept.scale, rtol=2.0 * EPS32, atol=2.0 * EPS32)


def test_equal_weights_are_no_weights():
    for fit in (lambda w: fit_scaling(ROWS, weights=w), lambda w: standardize(ROWS, weights=w)):
        scaling, white = fit(None)
        equal, again = fit(weight_table("fit_flow", np.full(10, 7.0), 10))
        np.testing.assert_allclose(again, white, rtol=1e-12, atol=1e-12)
        for name in ("location", "scale", "log_scale"):
            one, other = (getattr(each.chain.transforms[-1], name) for each in (equal, scaling))
            np.testing.assert_allclose(one, other, rtol=2.0 * EPS32, atol=2.0 * EPS32)


@pytest.mark.parametrize(
    ("support", "free"),
    [(constraints.corr_cholesky, 3), (constraints.zero_sum(1), 2), (constraints.simplex, 2)],
    ids=["corr_cholesky", "zero_sum", "simplex"],
)
def test_draws_in_float32_lie_on_a_surface(support, free):
    """To the precision they were made with: numpyro asks for that of the array's own type, and a table is in float64."""
    rows = np.asarray(biject_to(support)(jr.normal(jr.key(0), (200, free))), np.float64)
    np.testing.assert_array_equal(event_table("fit_flow", rows, support).rows, rows)
    rows[17, ..., 0] += 0.01
    with pytest.raises(ValueError, match=r"(?s)expected `data` on the support .* at index \(17,\), and 1 such"):
        event_table("fit_flow", rows, support)
