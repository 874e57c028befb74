"""What a fit says about a table before it starts: `fit_flow` is called, and stopped where whitening would begin."""

import warnings
from typing import Any

import arviz as az
import jax
import jax.random as jr
import numpy
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from numpyro.distributions import constraints

import flowdensity as fd

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(2200, 2))
MU, TAU, Z = RNG.normal(size=2000), np.abs(RNG.normal(size=2000)), RNG.normal(size=(2000, 3))


class Stopped(Exception):
    """Raised in place of all further work."""


@pytest.fixture(autouse=True)
def _stop_before_whitening(monkeypatch):
    def stop(*_):
        raise Stopped

    monkeypatch.setattr("flowdensity.training.prepare.fit_scaling", stop)


def said(data, **options):
    """Warnings of `fit_flow` about some data."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(Stopped):
            fd.fit_flow(jr.key(0), data, **options)
    assert all(each.filename == __file__ for each in caught), "a warning points at the line of the fit"
    return [str(each.message) for each in caught]


def said_after_fix(message, data, **options):
    """Warnings once the line of code in a message has run."""
    names: dict[str, Any] = {"numpy": numpy, "constraints": constraints, "fd": fd, "data": data, **options}
    exec(message.rpartition("Fix: ")[2], names)
    return said(names["data"], **{name: names[name] for name in ("context", "weights", "support") if name in names})


def with_code(value, count, column=1, scale=1.0, offset=0.0):
    table = scale * NORMAL + offset
    table[:count, column] = value
    return table


@pytest.mark.parametrize("digits", [12, 1])
@pytest.mark.parametrize("value", [-999.0, 9999.0, 999.0, -1.0, 0.0])
def test_a_code_for_missing_values_is_named_with_its_count(value, digits):
    data = np.round(with_code(value, 40, scale=15.0, offset=100.0), digits)
    found = said(data)
    (message,) = [each for each in found if "tails" in each]
    assert f"data[:, 1], in which 40 rows are {value:g} and all others lie between" in message
    assert message.endswith(f"Fix: data = data[data[:, 1] != {value:g}]")
    assert not [each for each in said_after_fix(message, data) if "tails" in each]


def test_a_lone_outlier_is_named_and_left_out_of_context_and_weights_too():
    data = {"a": with_code(1e12, 1), "b": RNG.normal(size=2200)}
    options = {"context": RNG.normal(size=2200), "weights": np.linspace(1.0, 2.0, 2200)}
    (message,) = said(data, **options)
    assert "data['a'][:, 1], in which 1 row is 1000000000000 and all others" in message
    assert not said_after_fix(message, data, **options)
    (message,) = said(NORMAL, context={"s": with_code(-999.9, 7)})
    assert message.startswith("fit_flow expected values of `context`")
    assert "7 rows are -999.9" in message
    assert not said_after_fix(message, NORMAL, context={"s": with_code(-999.9, 7)})


def test_several_codes_and_two_outliers_are_found():
    data = with_code(9999.0, 20)
    data[20:30, 1] = 9998.0
    data[40:42, 0] = -1e6, -2e6
    (message,) = said(data)
    assert "data[:, 1], in which 30 rows are 9998 or 9999" in message
    assert "1 more column has such values" in message
    assert not said_after_fix(message, data)


def test_a_table_of_pictures_and_a_bounded_support_are_looked_at_too():
    pictures = RNG.normal(size=(2000, 2, 3))
    pictures[5, 1, 2] = 1e9
    (message,) = said(pictures)
    assert "data[:, 1, 2], in which 1 row is 1000000000 " in message
    assert not said_after_fix(message, pictures)
    inside = RNG.beta(4.0, 4.0, 2000)
    assert not said(inside, support=constraints.unit_interval)
    inside[:30] = 1e-12
    (message,) = said(inside, support=constraints.unit_interval)
    assert "data, in which 30 rows are 1e-12" in message
    # On `positive` the logarithm is learned, whose tail reaches this far.
    assert not said(np.append(RNG.lognormal(0.0, 2.0, 2000), 1e6), support=constraints.positive)


@pytest.mark.parametrize("rows", [200, 2000, 20_000])
@pytest.mark.parametrize("law", ["t2", "lognormal"])
def test_heavy_tails_are_no_outliers(law, rows):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        table = rng.standard_t(2.0, (rows, 3)) if law == "t2" else rng.lognormal(0.0, 2.0, (rows, 3))
        assert not [each for each in said(table) if "tails" in each]


@pytest.mark.parametrize(
    ("origin", "spread"), [(2460000.13, 0.3), (1.7e9, 300.0), (-1e7, 2.0)], ids=["days", "seconds", "-1e7"]
)
@pytest.mark.parametrize("argument", ["data", "context"])
def test_an_offset_that_takes_the_digits_is_subtracted(origin, spread, argument):
    table = {"t": origin + spread * NORMAL[:, 0]}
    data, context = (table, None) if argument == "data" else (NORMAL, table)
    (message,) = said(data, context=context)
    assert message.startswith(
        f"fit_flow expected columns of `{argument}` whose rows differ in float32; got {argument}['t'], which has "
    )
    assert message.endswith(f"Fix: {argument}['t'] -= {round(origin)}")
    with jax.enable_x64(True):
        assert not said(data, context=context)
    assert not said_after_fix(message, data, context=context)


@pytest.mark.parametrize("argument", ["data", "context"])
def test_an_offset_that_takes_all_digits_is_an_error(argument):
    table = NORMAL + np.array([0.0, 1e9])
    data, context = (table, None) if argument == "data" else (NORMAL, table)
    with pytest.raises(ValueError, match=f"which is constant to.*Fix: {argument}.* -= 1000000000") as caught:
        fd.fit_flow(jr.key(0), data, context)
    with jax.enable_x64(True):
        assert not said(data, context=context)
    assert not said_after_fix(str(caught.value), data, context=context)


def test_digits_that_a_logarithm_loses_count():
    """Their spread is a tenth of a float32 step on the real line of `positive`, and 100 steps without it."""
    data = 1e5 + 0.8 * NORMAL[:, 0]
    assert not said(data)
    (message,) = said(data, support=constraints.positive)
    assert message.endswith("Fix: data -= 100000")


@pytest.mark.parametrize(
    ("column", "support"),
    [
        (1e45 * NORMAL[:, 0], None),
        (1e-45 * NORMAL[:, 0], None),
        (1e33 * NORMAL[:, 0], None),
        (1e-33 * NORMAL[:, 0], None),
        (10.0 ** RNG.uniform(-80.0, -45.0, 2200), constraints.positive),
        (10.0 ** RNG.uniform(-200.0, 30.0, 2200), constraints.positive),
    ],
    ids=["1e45", "1e-45", "1e33", "1e-33", "p-values", "no unit suits"],
)
def test_numbers_that_the_dtype_lacks_are_an_error_with_a_unit_or_a_logarithm(column, support):
    data, supports = {"a": NORMAL[:, 0], "p": column}, {} if support is None else {"p": support}
    with pytest.raises(
        ValueError, match=r"fit_flow expected `data\['p'\]` with numbers that float32 can represent; got"
    ) as caught:
        fd.fit_flow(jr.key(0), data, support=supports)
    message = str(caught.value)
    with jax.enable_x64(True):
        said(data, support=supports)
    kept = {} if "numpy.log" in message else supports
    assert not [each for each in said_after_fix(message, data, support=kept) if "float32" in each]


@pytest.mark.parametrize("scale", [1e45, 1e-45])
def test_contexts_that_the_dtype_lacks_are_an_error(scale):
    context = {"s": scale * NORMAL[:, 0]}
    with pytest.raises(ValueError, match=r"`context\['s'\]` with numbers that float32 can represent") as caught:
        fd.fit_flow(jr.key(0), NORMAL, context)
    assert not said_after_fix(str(caught.value), NORMAL, context=context)


def test_a_minority_of_rows_below_the_dtype_is_no_error():
    said(RNG.gamma(0.02, size=2000), support=constraints.positive)
    for scale in (1e-20, 1e20, 1e30, 1e-30):
        assert not said(scale * NORMAL)


def test_posteriors_with_deterministic_sites():
    data = {"mu": MU, "z": Z, "tau": TAU, "theta": MU[:, None] + TAU[:, None] * Z}
    supports = {"tau": constraints.positive}
    (message,) = said(data, support=supports)
    assert "got data['theta'][:, 0], data['theta'][:, 1], data['theta'][:, 2], which follow from others" in message
    assert message.endswith("Fix: data = {key: data[key] for key in data if key != 'theta'}")
    assert not said_after_fix(message, data, support=supports)
    assert not said({**data, "theta": data["theta"] + 1e-2 * RNG.normal(size=(2000, 3))}, support=supports)


@pytest.mark.parametrize(
    "function",
    [np.log, np.square, np.exp, lambda tau: 1.0 / (1.0 + tau), lambda tau: 2.0 * tau],
    ids=["log", "square", "exp", "sigmoid", "double"],
)
def test_a_function_of_one_column(function):
    data = {"mu": MU, "tau": TAU, "other": function(TAU)}
    found = said(data, support={"tau": constraints.positive})
    assert any("functions of others" in each or "linearly independent" in each for each in found)


def test_a_product_and_a_ratio_of_positive_columns():
    first, second = RNG.lognormal(size=2000), RNG.lognormal(size=2000)
    for third in (first * second, first / second, first**2 * np.sqrt(second)):
        found = said(np.column_stack([first, second, third]))
        assert any("functions of others" in each or "linearly independent" in each for each in found)


def test_the_line_that_drops_a_column_drops_its_support_too():
    first, second = RNG.lognormal(size=(2, 2000))
    table = np.column_stack([first, second, first + second])
    for supports in (constraints.positive, [constraints.positive] * 3):
        (message,) = said(table, support=supports)
        assert "linearly independent" in message
        assert not said_after_fix(message, table, support=supports)
    named = {"a": first, "b": second, "c": first + second}
    supports = dict.fromkeys(named, constraints.positive)
    (message,) = said(named, support=supports)
    assert not said_after_fix(message, named, support=supports)


def test_a_positive_column_without_support():
    data = {"mu": MU, "tau": TAU}
    (message,) = said(data)
    assert "got data['tau'] without one" in message
    assert message.endswith("Fix: support = {'tau': constraints.positive}")
    assert not said_after_fix(message, data)
    array = np.column_stack([MU, TAU, Z[:, 0]])
    (message,) = said(array)
    assert not said_after_fix(message, array)
    shares = RNG.random(2000)
    (message,) = said(shares)
    assert message.endswith("Fix: support = constraints.unit_interval")
    assert not said_after_fix(message, shares)
    (message,) = said(-TAU)
    assert not said_after_fix(message, -TAU)
    (message,) = said({"mu": MU, "tau": TAU, "s": TAU[::-1]}, support={"s": constraints.positive})
    assert message.endswith("Fix: support['tau'] = constraints.positive")


def test_columns_that_keep_away_from_zero_need_no_support():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        normal, gamma = rng.normal(5.0, 1.0, 2000), rng.gamma(9.0, size=2000)
        assert not said({"a": normal, "b": gamma, "c": 3.0 + rng.exponential(size=2000)})


def test_posteriors_of_eight_schools():
    (repeated,) = said(az.load_arviz_data("centered_eight"))
    assert "1735 distinct rows among 2000" in repeated
    related, positive = said(az.load_arviz_data("non_centered_eight"))
    assert "data['posterior']['theta'][:, 0]" in related
    assert "data['posterior']['tau']" in positive


def draws(mu, z):
    """A posterior of two chains."""
    return xr.Dataset(
        {"mu": (("chain", "draw"), mu.reshape(2, -1)), "z": (("chain", "draw", "i"), z.reshape(2, -1, 3))}
    )


def containers(mu, z):
    """The same rows in several containers."""
    frame = pd.DataFrame({"mu": mu, "other": z[:, 0]}, index=np.random.default_rng(1).permutation(len(mu)))
    return {
        "array": np.column_stack([mu, z]),
        "dict": {"mu": mu, "z": z},
        "frame with an index of its own": frame,
        "posterior": draws(mu, z),
        "variable": draws(mu, z)["z"],
        "extracted": draws(mu, z).stack(sample=("chain", "draw"))["z"],
        "groups": xr.DataTree.from_dict({"posterior": draws(mu, z)}),
    }


@pytest.mark.parametrize("name", containers(MU, Z))
def test_lines_run_in_every_container(name):
    repeated = containers(np.repeat(MU[:300], 2), np.repeat(Z[:300], 2, axis=0))[name]
    (message,) = said(repeated)
    assert "got 300 distinct rows among 600" in message
    assert not said_after_fix(message, repeated)
    coded = containers(
        np.where(np.arange(600) < 30, -999.0, MU[:600]), np.where(np.arange(600) < 30, -999.0, Z[:600].T).T
    )
    (message,) = [each for each in said(coded[name]) if "tails" in each]
    assert "30 rows are -999" in message
    assert not [each for each in said_after_fix(message, coded[name]) if "-999" in each and "30 rows" in each]


def test_rows_that_are_repeated_count_as_often_as_they_came():
    counts = np.arange(1, 101)
    data = np.repeat(NORMAL[:100], counts, axis=0)[RNG.permutation(counts.sum())]
    weights = np.full(len(data), 0.5)
    (message,) = said(data, weights=weights)
    names = {"numpy": numpy, "data": data, "weights": weights}
    exec(message.rpartition("Fix: ")[2], names)
    found = {tuple(row): weight for row, weight in zip(names["data"], names["weights"], strict=True)}
    assert found == {tuple(row): 0.5 * count for row, count in zip(NORMAL[:100], counts, strict=True)}
