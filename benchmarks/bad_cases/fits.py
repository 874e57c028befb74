"""Fits and distillations."""

from typing import Any

import numpy as np
import numpyro.distributions as dist
import optax
import pandas as pd
import xarray as xr
from numpyro.distributions import constraints

from .case import Case, Deferred, Groups, cases
from .material import (
    AMORTIZED,
    BY_NAME,
    CONTEXT,
    DATA,
    FIELD,
    GIVEN_LATER,
    KEY,
    NAMED,
    PLAIN,
    POSTERIOR,
    RNG,
    ROWS,
    draws,
    fd,
    sampler,
    with_entry,
)

ALIKE = ("fit_flow", "fit_diffusion", "fit_likelihood")
"""The fits that check their input alike."""
GOOD = {"data": DATA, "density": PLAIN}
COUNTS = np.random.default_rng(2).poisson(5.0, (ROWS, 2))
TEXT_COLUMN = pd.DataFrame({"a": DATA[:, 0], "b": ["x"] * ROWS})
LONG = draws(theta=RNG.normal(size=(2, 50, 2))).to_dataframe()
DIGITS = pd.DataFrame({"a": DATA[:, 0], "b": [str(each) for each in DATA[:, 1]]})
CATEGORIES = pd.DataFrame({"a": DATA[:, 0], "b": pd.Categorical(["x", "y"] * (ROWS // 2))})


def of_all_fits(name: str) -> list[Case]:
    """What all fits from data check alike."""
    of_data: dict[str, Any] = {
        "one row": DATA[:1],
        "a single number": 3.0,
        "rows without columns": np.zeros((ROWS, 0)),
        "rows of several lengths": [[1.0, 2.0], [3.0], [4.0, 5.0]],
        "text": [["a", "b"], ["c", "d"]],
        "numbers as text": [["1", "2"], ["3", "5"], ["7", "6"]],
        "masked entries": np.ma.masked_equal(with_entry(DATA, -9999.0), -9999.0),
        "masked entries, in a dict": {"a": np.ma.masked_less(DATA[:, 0], -2.0), "b": DATA[:, 1]},
        "a missing value of pandas": pd.DataFrame({"a": DATA[:, 0], "b": pd.array([None, *range(ROWS - 1)])}),
        "one draw spread over several rows": LONG,
        "variables with different draws": {"a": POSTERIOR["theta"], "b": POSTERIOR["theta"].isel(draw=slice(40))},
        "the name of a file": "table.csv",
        "a run of NUTS": Deferred(sampler),
        "a distribution": dist.Normal(0.0, 1.0),
        "an iterator": Deferred(lambda: iter(DATA)),
        "complex numbers": DATA + 1j * DATA[::-1],
        "a nan": with_entry(DATA, np.nan),
        "a nan, in a DataFrame": pd.DataFrame(with_entry(DATA, np.nan), columns=["a", "b"]),
        "a nan, in a dict": {"a": DATA[:, 0], "b": with_entry(DATA, np.nan)[:, 1]},
        "an infinite value": with_entry(DATA, np.inf),
        "a constant column": np.column_stack([DATA, np.full(ROWS, 7.0)]),
        "a constant column of a DataFrame": pd.DataFrame({"a": DATA[:, 0], "b": 1.0}),
        "a constant in a dict": {"a": DATA[:, 0], "b": np.ones(ROWS)},
        "a constant, alone": np.ones(ROWS),
        "a constant entry of an array of events": np.stack([DATA, np.ones((ROWS, 2))], axis=1),
        "a column that float32 cannot tell from a constant": np.column_stack([DATA, 1e9 + DATA[:, 0]]),
        "a dict without arrays": {},
        "sites with different numbers of rows": {"a": DATA[:, 0], "b": DATA[:-1, 1]},
        "a DataFrame with a column of text": TEXT_COLUMN,
        "a DataFrame with numbers as text": DIGITS,
        "a DataFrame with categories": CATEGORIES,
        "a DataFrame with two columns of one name": pd.DataFrame(DATA, columns=["a", "a"]),
        "a posterior whose draws have no chains": xr.Dataset({"a": (("row",), DATA[:, 0])}),
    }
    arguments: dict[str, dict[str, Any]] = {
        "an integer for the key": {"key": 0},
        "an array for the key": {"key": DATA},
        **{words: {"data": data} for words, data in of_data.items()},
        "numbers that are too large": {"data": 1e45 * DATA},
        "numbers that are too small": {"data": np.column_stack([DATA[:, 0], 1e-60 * DATA[:, 1]])},
        "p-values": {"data": 10.0 ** np.linspace(-300.0, -1.0, ROWS), "support": constraints.positive},
        "a `context` of numbers that are too large": {"context": {"c": 1e300 * CONTEXT[:, 0]}},
        "`support` in words": {"data": np.exp(DATA), "support": "positive"},
        "negative values on `constraints.positive`": {"support": constraints.positive},
        "a zero on `constraints.nonnegative`": {
            "data": np.abs(with_entry(DATA, 0.0)),
            "support": constraints.nonnegative,
        },
        "negative values of one site": {"data": {"a": DATA[:, 0]}, "support": {"a": constraints.positive}},
        "negative values in one column": {"support": [constraints.real, constraints.positive]},
        "angles on `constraints.circular`": {"support": constraints.circular},
        "`support` of whole numbers": {"data": COUNTS, "support": constraints.nonnegative_integer},
        "`support` of whole numbers, for one site": {
            "data": {"a": DATA[:, 0], "b": COUNTS[:, 1]},
            "support": {"b": constraints.nonnegative_integer},
        },
        "`support` for which there is no bijection": {"support": constraints.sphere},
        "one constraint in a list, for two columns": {"support": [constraints.real]},
        "one constraint in a list, for numbers": {"data": DATA[:, 0], "support": [constraints.real]},
        "words in a list for `support`": {"support": ["real", constraints.real]},
        "`support` by name for an array": {"support": {"a": constraints.real, "b": constraints.real}},
        "`support` of a name that `data` lacks": {"data": NAMED, "support": {"sigma": constraints.positive}},
        "a list as the `support` of named values": {"data": NAMED, "support": [constraints.real] * 2},
        "numbers on a simplex": {"data": DATA[:, 0], "support": constraints.simplex},
        "`context` with fewer rows": {"context": CONTEXT[:-1]},
        "`context` with a nan": {"context": with_entry(CONTEXT, np.nan)},
        "`context` with a nan, by name": {"context": {"c": with_entry(CONTEXT, np.nan)[:, 1]}},
        "a constant column in `context`": {"context": np.ones((ROWS, 1))},
        "a constant column among others in `context`": {"context": np.column_stack([CONTEXT, np.ones(ROWS)])},
        "a constant column of a named `context`": {"context": {"c": CONTEXT[:, 0], "d": np.ones(ROWS)}},
        "text for `context`": {"context": ["a", "b"] * (ROWS // 2)},
        "too few `weights`": {"weights": np.ones(ROWS - 1)},
        "a negative weight": {"weights": np.r_[-1.0, np.ones(ROWS - 1)]},
        "a nan among `weights`": {"weights": np.r_[np.nan, np.ones(ROWS - 1)]},
        "one weight that is not zero": {"weights": np.eye(ROWS)[0]},
        "weights that leave a column constant": {
            "data": np.column_stack([DATA, np.arange(ROWS) < 5]),
            "weights": np.r_[np.zeros(5), np.ones(ROWS - 5)],
        },
        "a name for `network`": {"network": "mlp"},
        "a class for `network`": {"network": fd.networks.ResidualMLP},
        "`network` of another dimension": {"network": fd.networks.ResidualMLP(KEY, 3, width=8)},
        "a name for `divergence`": {"divergence": "hutchinson"},
        "a class for `divergence`": {"divergence": fd.ExactDivergence},
        "a number of steps for `training`": {"training": 1000},
        "`tolerance=0`": {"tolerance": 0},
        "`checkpoint=True`": {"checkpoint": True},
        "`checkpoint` with a file in its place": {"checkpoint": "notes.txt"},
        "`checkpoint` of another fit": {"checkpoint": "other-fit"},
    }
    return cases(f"fd.{name}(key, data, progress=False)", GOOD, arguments)


FITS: Groups = [
    cases(
        "fd.fit_flow(key, data, progress=False)",
        GOOD,
        {'path="condot"': {"path": "condot"}, "a class for `path`": {"path": fd.paths.CondOT}},
    ),
    cases(
        "fd.fit_diffusion(key, data, progress=False)",
        GOOD,
        {'path="vp"': {"path": "vp"}, 'prediction="epsilon"': {"prediction": "epsilon"}},
    ),
    cases(
        "fd.fit_likelihood(key, data, model=model, progress=False)",
        GOOD | {"model": PLAIN.model},
        {
            "a density for `model`": {"model": PLAIN},
            "a callable for `model`": {"model": lambda t, x, context: x},
            "`model` and `network`": {"network": fd.networks.ResidualMLP(KEY, 2)},
            "`model` and `support`": {"support": constraints.positive},
            "data of another shape than the model's": {"data": DATA[:, :1]},
        },
    ),
    cases(
        "fd.fit_divergence(key, model, data, progress=False)",
        GOOD | {"model": PLAIN.model},
        {
            "an integer for the key": {"key": 0},
            "a density for `model`": {"model": PLAIN},
            "an amortized density for `model`": {"model": AMORTIZED},
            "data of another shape than the model's": {"data": CONTEXT},
            "data with a nan": {"data": with_entry(DATA, np.nan)},
            "names for a model without": {"data": NAMED},
            "another name than the model's": {
                "model": BY_NAME.model,
                "data": {"mu": DATA[:, 0], "sigma": NAMED["tau"]},
            },
            "a name too many": {"model": BY_NAME.model, "data": NAMED | {"nu": DATA[:, 0]}},
            "a conditional model without `context`": {"model": GIVEN_LATER.model},
            "`context` for an unconditional model": {"context": CONTEXT},
            'objective="stein"': {"objective": "stein"},
            "`ScoreStein` for a model without a score": {"model": FIELD, "objective": fd.objectives.ScoreStein()},
            "a dict for `training`": {"training": {"steps": 100}},
        },
    ),
    cases(
        "fd.distill(key, density, progress=False)",
        GOOD,
        {
            "an integer for the key": {"key": 0},
            "a model for `density`": {"density": PLAIN.model},
            "a density that is amortized already": {"density": AMORTIZED},
            "`labels=8`": {"labels": 8},
            "`width=0`": {"width": 0},
            "an optax optimizer for `training`": {"training": optax.adam(1e-3)},
        },
    ),
    cases("fd.Training(steps=steps)", {}, {"`steps=0`": {"steps": 0}, "`steps=1e3`, a float": {"steps": 1e3}}),
    cases("fd.Training(batch_size=batch_size)", {}, {"`batch_size=0`": {"batch_size": 0}}),
    cases(
        "fd.Training(learning_rate=learning_rate)",
        {},
        {"`learning_rate=-1e-3`": {"learning_rate": -1e-3}, "`learning_rate` of nan": {"learning_rate": np.nan}},
    ),
    cases("fd.Training(validation=validation)", {}, {"`validation=1`": {"validation": 1}}),
    cases("fd.Training(optimizer=optimizer)", {}, {"a name for `optimizer`": {"optimizer": "adam"}}),
    cases(
        "fd.Training(optimizer=optimizer, learning_rate=learning_rate)",
        {"optimizer": optax.adam(1e-3)},
        {"both `optimizer` and `learning_rate`": {"learning_rate": 1e-3}},
    ),
]
