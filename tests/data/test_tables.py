"""Bad input is refused before any work, with a message that says what to do."""

import re

import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.distributions import constraints
from references import gaussian_flow, patch_everywhere, untrained_flow

import flowdensity as fd
from flowdensity.data.tables import Sample, context_table, event_table

ROWS = np.random.default_rng(0).normal(size=(10, 2))
CONTEXTS = np.random.default_rng(1).normal(size=(10, 3))


def put(table: np.ndarray, index: tuple[int, ...], value: float) -> np.ndarray:
    table = table.copy()
    table[index] = value
    return table


# name: (error, the argument that the message names, what the message must say, data, other arguments)
BAD = {
    "nan": (ValueError, "data", r"finite.*\(3, 1\)", put(ROWS, (3, 1), np.nan), {}),
    "infinite": (ValueError, "data", r"finite.*\(0, 0\)", put(ROWS, (0, 0), -np.inf), {}),
    "one row": (ValueError, "data", r"n >= 2; got \(1, 2\)", ROWS[:1], {}),
    "no rows": (ValueError, "data", r"n >= 2; got \(0, 2\)", ROWS[:0], {}),
    "no columns": (ValueError, "data", r"got \(10, 0\)", ROWS[:, :0], {}),
    "a single number": (ValueError, "data", r"got \(\)", 3.0, {}),
    "constant column": (ValueError, "data", "constant column, 1", put(ROWS, np.s_[:, 1], 7.0), {}),
    "constant in single precision": (
        ValueError,
        "data",
        "constant column, 0",
        put(ROWS, np.s_[:, 0], 1e6 + 1e-6 * np.arange(10)),
        {},
    ),
    "constant 1-D": (ValueError, "data", "constant column, 0", np.ones(10), {}),
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
        "constant column, 0",
        ROWS,
        {"context": put(CONTEXTS, np.s_[:, 0], 1.0)},
    ),
    "context strings": (TypeError, "context", "<U", ROWS, {"context": np.array(["a"] * 10)}),
    "context objects": (TypeError, "context", "object", ROWS, {"context": np.array([object()] * 10)}),
}


@pytest.fixture
def no_work(monkeypatch):
    """Fail if training, or even the whitening, is reached."""

    def reached(*args, **kwargs):
        pytest.fail("work began before the input was checked")

    for name in ("fit_scaling", "standardise", "train", "draw_matching"):
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
