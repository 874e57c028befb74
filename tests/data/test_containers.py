"""Whatever rows are kept in: the same table is learned from all of it, or an error says what to do."""

import copy
import functools
import inspect
import re
import warnings

import arviz
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
import xarray as xr
from numpyro.distributions import constraints
from numpyro.infer import MCMC, NUTS
from references import conditional_gaussian_flow, gaussian_flow, named_flow, patch_everywhere
from sklearn import datasets

import flowdensity as fd

KEY = jr.key(0)


class Learned(Exception):
    """What a fit was about to learn from."""


@pytest.fixture
def learned(monkeypatch):
    """A function that calls `fit_flow` up to the point where the tables have been read: rows, support and sites of events, and
    those of contexts; warnings are errors."""
    found = {}

    def events(rows, support, sites, weights=None):
        found["events"] = rows, support, sites
        return None, np.zeros((len(rows), 1))

    def contexts(rows, sites, weights=None):
        found["contexts"] = rows, sites
        raise Learned

    patch_everywhere(monkeypatch, "fit_scaling", events)
    patch_everywhere(monkeypatch, "standardize", contexts)
    # How rows are related is not what is tested here.
    patch_everywhere(monkeypatch, "warn_about_tables", lambda *args: None)

    def learned_from(data, context=None, **options):
        with pytest.raises(Learned):
            fd.fit_flow(KEY, data, context, progress=False, **options)
        return found

    return learned_from


def columns(found, which="events"):
    """Rows by name."""
    rows, *_, sites = found[which]
    return {str(name): np.asarray(values) for name, values in sites.unpack(rows).items()}


# Draws --------------------------------------------------------------------------------------------

CHAINS, DRAWS = 2, 5
GROUPED = {
    "mu": np.arange(10.0).reshape(CHAINS, DRAWS),
    "w": np.random.default_rng(0).normal(size=(CHAINS, DRAWS, 3)),
    "m": np.random.default_rng(1).normal(size=(CHAINS, DRAWS, 2, 2)),
}
FLAT = {name: array.reshape(10, *array.shape[2:]) for name, array in GROUPED.items()}
"""As `MCMC.get_samples()` has them: the second chain behind the first."""
DIMS = {"mu": ("chain", "draw"), "w": ("chain", "draw", "i"), "m": ("chain", "draw", "j", "k")}


def in_arviz(**groups):
    """InferenceData of arviz 0.23, DataTree of arviz 1."""
    old = "posterior" in inspect.signature(arviz.from_dict).parameters
    return arviz.from_dict(**groups) if old else arviz.from_dict(groups)


def dataset(**dims: tuple[str, ...]) -> xr.Dataset:
    """The same draws as an xarray Dataset, each variable's axes in the order that `dims` says."""
    coords = {"chain": np.arange(CHAINS), "draw": np.arange(DRAWS)}
    return xr.Dataset({name: xr.DataArray(GROUPED[name], dims=DIMS[name]) for name in GROUPED}, coords).map(
        lambda variable: variable.transpose(*dims.get(variable.name, DIMS[variable.name]))
    )


DATASET = dataset()

FORMS = {
    "a dict": lambda: FLAT,
    "a dict of JAX arrays": lambda: {name: jnp.asarray(array) for name, array in FLAT.items()},
    "arviz": lambda: in_arviz(posterior=GROUPED),
    "arviz, with other groups": lambda: in_arviz(posterior=GROUPED, prior={"mu": GROUPED["mu"]}),
    "a group of arviz": lambda: in_arviz(posterior=GROUPED)["posterior"],
    "a posterior by attribute": lambda: in_arviz(posterior=GROUPED).posterior,
    "a prior by its group": lambda: in_arviz(prior=GROUPED)["prior"],
    "a Dataset": dataset,
    "a Dataset, draws before chains": lambda: dataset(
        mu=("draw", "chain"), w=("draw", "chain", "i"), m=("draw", "chain", "j", "k")
    ),
    "a Dataset, draws last": lambda: dataset(w=("i", "chain", "draw"), m=("j", "draw", "k", "chain")),
    "a Dataset with samples last": lambda: dataset().stack(sample=("chain", "draw")),
    "arviz.extract": lambda: arviz.extract(in_arviz(posterior=GROUPED)),
    "a Dataset of one chain": lambda: xr.Dataset(
        {name: (("draw", *(f"{name}_{i}" for i in range(1, rows.ndim))), rows) for name, rows in FLAT.items()}
    ),
    "a DataTree": lambda: xr.DataTree.from_dict({"/posterior": dataset(), "/prior": dataset()[["mu"]]}),
    "a node of a DataTree": lambda: xr.DataTree.from_dict({"/posterior": dataset()})["posterior"],
    "a DataTree that is a group itself": lambda: xr.DataTree(dataset()),
    "a dict of DataArrays": lambda: {name: dataset()[name] for name in GROUPED},
    "a dict of DataArrays, samples last": lambda: {
        name: arviz.extract(in_arviz(posterior=GROUPED), var_names=name) for name in GROUPED
    },
    "a dict of DataArrays and arrays": lambda: FLAT | {"w": dataset(w=("i", "chain", "draw"))["w"]},
    "a user's own dimension called sample": lambda: dataset().rename(i="sample"),
    "and no chains": lambda: xr.Dataset(
        {"mu": ("draw", FLAT["mu"]), "w": (("sample", "draw"), FLAT["w"].T), "m": (("draw", "j", "k"), FLAT["m"])}
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_draws_are_rows_in_every_form(form, learned):
    found = columns(learned(form()))
    assert set(found) == set(FLAT)
    for name, rows in FLAT.items():
        np.testing.assert_allclose(found[name], rows, rtol=1e-6)


ARRAYS = {
    "a variable": lambda name: dataset()[name],
    "of a posterior": lambda name: in_arviz(posterior=GROUPED)["posterior"][name],
    "by arviz.extract": lambda name: arviz.extract(in_arviz(posterior=GROUPED), var_names=name, keep_dataset=False),
    "without its index": lambda name: (
        dataset()[name].stack(sample=("chain", "draw")).drop_vars(["sample", "chain", "draw"])
    ),
    "chains last": lambda name: dataset()[name].transpose(..., "draw", "chain"),
}


@pytest.mark.parametrize("name", GROUPED)
@pytest.mark.parametrize("form", ARRAYS.values(), ids=ARRAYS.keys())
def test_a_data_array_has_draws_as_rows_and_the_name_of_its_variable(form, name, learned):
    found = columns(learned(form(name)))
    assert list(found) == [name]
    np.testing.assert_allclose(found[name], FLAT[name], rtol=1e-6)
    rows, _, sites = learned(form(name).rename(None))["events"]
    assert sites is None
    np.testing.assert_array_equal(rows, FLAT[name])


def test_a_selection_of_a_posterior_keeps_its_names_and_draws(learned):
    posterior = in_arviz(posterior=GROUPED).posterior
    chosen = columns(learned(posterior.dataset[["w"]] if hasattr(posterior, "dataset") else posterior[["w"]]))
    assert list(chosen) == ["w"]
    later = columns(learned(dataset().sel(chain=[1]).isel(draw=slice(2, None))))
    np.testing.assert_array_equal(later["mu"], [7.0, 8.0, 9.0])
    only = columns(learned(dataset().isel(chain=1)))
    np.testing.assert_allclose(only["m"], FLAT["m"][5:], rtol=1e-6)


def test_contexts_and_weights_are_read_alike(learned):
    weights = np.arange(1.0, 11.0).reshape(CHAINS, DRAWS)
    found = learned(
        DATASET["mu"],
        DATASET["w"].transpose("i", "draw", "chain"),
        weights=xr.DataArray(weights, dims=("chain", "draw")),
    )
    np.testing.assert_array_equal(columns(found, "contexts")["w"], FLAT["w"])
    table = pd.DataFrame({"children": FLAT["w"][:, 0], "T": FLAT["mu"]})
    assert list(columns(learned(FLAT["w"], table), "contexts")) == ["children", "T"]


def test_one_site_of_a_model_without_names_needs_none():
    density = fd.FlowDensity(gaussian_flow())
    draws = np.asarray(density.sample(KEY, (2, 40)))
    array = xr.DataArray(draws, dims=("chain", "draw", "i"), name="theta")
    posterior = xr.Dataset({"theta": array})
    share = fd.check_support(posterior, density, data=array.transpose("i", "chain", "draw")).level
    np.testing.assert_array_equal(share, fd.check_support(posterior, density, data=draws.reshape(80, 2)).level)


def test_draws_in_the_index_of_a_frame_are_rows(learned):
    np.testing.assert_array_equal(columns(learned(DATASET[["mu"]].to_dataframe()))["mu"], FLAT["mu"])


NOT_ROWS = {
    "no draws": (xr.DataArray(np.zeros((4, 3)), dims=("time", "i"), name="x"), r"got \('time', 'i'\) for 'x'"),
    "no name either": (
        xr.DataArray(np.zeros((4, 3)), dims=("time", "i")),
        r"sample, which become rows; got \('time', 'i'\)\.",
    ),
    "chains without draws": (DATASET["mu"].isel(draw=0), r"got \('chain',\) for 'mu'"),
    "a Dataset of chains without draws": (DATASET.isel(draw=0), r"got \('chain',\) for 'mu'"),
    "a Dataset without draws": (xr.Dataset({"mu": ("time", np.arange(3.0))}), r"got \('time',\) for 'mu'"),
    "one variable without draws": (
        DATASET.assign(tau=xr.DataArray(np.zeros(3), dims=("i",))),
        r"got \('i',\) for 'tau'",
    ),
    "one of a dict": (
        {"mu": DATASET["mu"], "t": xr.DataArray(np.zeros(10), dims=("t",))},
        r"`data\['t'\]`.*got \('t',\)",
    ),
    "no axes": (DATASET["mu"].mean(), r"got \(\) for 'mu'"),
    "one variable without chains": (
        DATASET.assign(tau=xr.DataArray(np.zeros(DRAWS), dims=("draw",))),
        r"same chain and draw labels; got \(chain: 2, draw: 5\) for 'mu' and \(draw: 5\) for 'tau'",
    ),
    "a dict whose chains disagree": (
        {
            "mu": xr.DataArray(np.zeros((2, 6)), dims=("chain", "draw")),
            "w": xr.DataArray(np.zeros((3, 4)), dims=("chain", "draw")),
        },
        r"same chain and draw labels; got \(chain: 2, draw: 6\) for 'mu' and \(chain: 3, draw: 4\) for 'w'",
    ),
    "a dict of other draws": (
        {"mu": DATASET["mu"][:, ::2], "w": DATASET["w"][:, :3]},
        r"same chain and draw labels; got \(chain: 2, draw: 3\) for 'mu' and \(chain: 2, draw: 3\) for 'w'",
    ),
    "a prior alone": (
        in_arviz(prior=GROUPED),
        r"with a group 'posterior', or a single group; got the groups \['prior'\]",
    ),
    "a DataTree without a posterior": (
        xr.DataTree.from_dict({"/prior": DATASET, "/observed_data": DATASET}),
        r"the groups \['prior', 'observed_data'\]",
    ),
    "a DataTree of nothing": (xr.DataTree(), r"the groups \[\]"),
    "coordinates below each other": (DATASET[["w"]].to_dataframe(), r"levels \['chain', 'draw', 'i'\]"),
    "an empty dict": ({}, "at least one named value; got an empty container"),
    "a frame without columns": (pd.DataFrame(), "at least one named value; got an empty container"),
    "names that become one": ({1: np.ones(3), "1": np.ones(3)}, "a different name for each site"),
    "columns of one name": (pd.DataFrame(np.ones((3, 2)), columns=["a", "a"]), "a different name for each site"),
}
MENDED = sorted(set(NOT_ROWS) - {"no axes", "a DataTree of nothing", "an empty dict", "a frame without columns",
                                  "names that become one", "columns of one name"})  # fmt: skip
"""Those whose line can be run as it is."""


def refusal(data, context=None, error=(TypeError, ValueError), **options):
    """What a fit says to its arguments."""
    with pytest.raises(error) as caught:
        fd.fit_flow(KEY, data, context, progress=False, **options)
    message = str(caught.value)
    assert re.match(r"fit_flow expected .+; got .+ Fix: .+", message, re.DOTALL), message
    return message


def after(message, **arguments):
    """The arguments after the line of a message was run."""
    names = {"numpy": np, "pandas": pd, "xarray": xr, "jax": jax, "key": KEY, "fd": fd} | arguments
    exec(message.rpartition("Fix: ")[2], names)
    return {name: names[name] for name in arguments}


@pytest.mark.parametrize("name", NOT_ROWS)
def test_what_has_no_rows_is_refused(name):
    data, says = NOT_ROWS[name]
    message = refusal(data, error=ValueError)
    assert re.search(says, message), message


@pytest.mark.parametrize("name", MENDED)
def test_the_line_makes_rows_of_it(name, learned):
    data, _ = NOT_ROWS[name]
    mended = after(refusal(data), data=data)["data"]
    # Some of the tables are zeros: then the next error is another one, which is not about rows.
    with pytest.raises((Learned, ValueError), match=r"^$|that vary"):
        fd.fit_flow(KEY, mended, progress=False)


# Tables and names ---------------------------------------------------------------------------------

HARD = str.split(
    "posterior values shape T chain draw size children groups data_vars columns dims sample index items keys name dtype mask "
    "to_pandas get_samples detach __array__ ndim"
)
TABLE = np.random.default_rng(2).normal(size=(60, len(HARD)))


@pytest.mark.parametrize("kind", ["frame", "dict", "Dataset", "structured", "recarray"])
def test_columns_may_be_called_like_attributes(kind, learned):
    frame = pd.DataFrame(TABLE, columns=list(HARD))
    structured = frame.to_records(index=False)
    data = {
        "frame": frame,
        "dict": dict(zip(HARD, TABLE.T, strict=True)),
        # A dimension and a variable cannot share a name.
        "Dataset": xr.Dataset(
            {
                name: ("draw" if name != "draw" else "sample", TABLE[:, i])
                for i, name in enumerate(HARD)
                if name not in ("draw", "sample", "chain")
            }
        ),
        "structured": np.array(structured.tolist(), dtype=[(name, float) for name in HARD]),
        "recarray": structured,
    }[kind]
    for found in (learned(data), learned(data, data)):
        by_name = columns(found)
        assert set(by_name) >= set(HARD) - {"chain", "draw", "sample"}
        for name, values in by_name.items():
            np.testing.assert_array_equal(values, TABLE[:, HARD.index(name)])
    assert set(columns(found, "contexts")) == set(by_name)


def test_labels_may_be_numbers(learned):
    frame = pd.DataFrame(np.exp(TABLE[:, :3]))
    rows, support, sites = learned(frame, support={0: constraints.positive, "2": constraints.positive})["events"]
    assert sites.names == ("0", "1", "2")
    np.testing.assert_array_equal(rows, frame.to_numpy())
    np.testing.assert_array_equal(support(-rows).all(), False)
    message = refusal(
        frame.assign(**{"1": np.where(frame[1] > 1, np.nan, 1.0)}).drop(columns=1).rename(columns={"1": 1})
    )
    assert "`data[1]`" in message


@pytest.mark.parametrize("kind", [dict, pd.DataFrame, xr.Dataset])
def test_pack_and_given_take_what_a_fit_takes(kind):
    conditional = fd.FlowDensity(named_flow(conditional=True))
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(2, 5)), "tau": rng.gamma(2.0, size=(2, 5)), "v": rng.gamma(2.0, size=(2, 5, 2))}
    contexts = {"s": rng.normal(size=(2, 5, 2)), "t": rng.normal(size=(2, 5))}
    expected, at = conditional.pack(values), conditional.given(contexts)
    if kind is pd.DataFrame:
        flat = fd.FlowDensity(conditional_gaussian_flow())
        table = pd.DataFrame(np.reshape(contexts["s"], (10, 2)))
        with pytest.raises(
            TypeError, match=r"learned without names; got the names \['0', '1'\]. Fix: context = context.to_numpy"
        ) as caught:
            flat.given(table)
        assert after(str(caught.value), context=table)["context"].shape == (10, 2)
        return

    def of(arrays):
        if kind is dict:
            return dict(reversed(arrays.items()))
        return xr.Dataset(
            {name: (("chain", "draw", *(["i"] * (value.ndim - 2))), value) for name, value in arrays.items()}
        ).transpose(..., "chain")

    np.testing.assert_array_equal(conditional.pack(of(values)), expected)
    np.testing.assert_array_equal(conditional.given(of(contexts)).context, at.context)


def test_pack_takes_an_arviz_posterior():
    density = fd.FlowDensity(named_flow())
    values = density.unpack(density.sample(KEY, (2, 7)))
    expected = density.pack(values)
    grouped = {name: np.asarray(value) for name, value in values.items()}
    for posterior in (
        in_arviz(posterior=grouped),
        in_arviz(posterior=grouped)["posterior"],
        in_arviz(posterior=grouped, prior=grouped),
    ):
        packed = density.pack(posterior)
        assert packed.shape == (2, 7, 4)
        np.testing.assert_array_equal(packed, expected)
    with pytest.raises(TypeError, match=r"values of the sites \['a', 'tau', 'v'\] by name; got ndarray.*Fix: "):
        density.pack(np.zeros(4))


EVENTS = {
    "a dict": {"a": 0.0, "tau": 1.0, "v": np.ones(2)},
    "a frame": pd.DataFrame({"a": np.zeros(3), "tau": np.ones(3), "v": np.ones(3)}),
    "a Dataset": xr.Dataset({"a": 0.0, "tau": 1.0, "v": ("i", np.ones(2))}),
}


@pytest.mark.parametrize("method", ["log_prob", "to_base", "unpack"])
@pytest.mark.parametrize("value", EVENTS.values(), ids=EVENTS.keys())
def test_events_by_name_are_to_be_packed(method, value):
    density, name = fd.FlowDensity(named_flow()), "event" if method == "unpack" else "value"
    with pytest.raises(
        TypeError,
        match=rf"FlowDensity.{method} expected `{name}` as an array of real numbers; got .*Fix: {name} = density.pack\({name}\)$",
    ) as caught:
        getattr(density, method)(value)
    if not isinstance(value, pd.DataFrame):
        assert after(str(caught.value), **{name: value}, density=density)[name].shape == (4,)


def test_a_frame_of_events_without_names_is_to_lose_its_names():
    density = fd.FlowDensity(gaussian_flow())
    frame = pd.DataFrame(np.ones((3, 2)), columns=["a", "b"])
    with pytest.raises(TypeError, match=r"got DataFrame with the columns \['a', 'b'\]. Fix: ") as caught:
        density.log_prob(frame)
    np.testing.assert_array_equal(
        density.log_prob(**after(str(caught.value), value=frame)), density.log_prob(np.ones((3, 2)))
    )


def test_series_and_data_arrays_are_arrays_of_events():
    density = fd.FlowDensity(named_flow())
    events = np.asarray(density.sample(KEY, (2, 5)))
    expected = density.log_prob(events)
    np.testing.assert_array_equal(density.log_prob(xr.DataArray(events, dims=("chain", "draw", "i"))), expected)
    np.testing.assert_array_equal(
        density.log_prob(pd.Series(events[0, 0], dtype="Float64")), density.log_prob(events[0, 0])
    )


# Masked and missing -------------------------------------------------------------------------------

ROWS = np.random.default_rng(3).normal(size=(60, 3))
MASK = np.zeros((60, 3), bool)
MASK[[4, 7, 7], [1, 0, 2]] = True
MASKED = np.ma.MaskedArray(np.where(MASK, -9999.0, ROWS), MASK)
WHOLE = ~MASK.any(axis=1)

MASKS = {
    "an array": (MASKED, "`data` without masked entries; got 3 masked of 180", ROWS[WHOLE]),
    "of integers": (
        np.ma.MaskedArray(np.arange(180).reshape(60, 3), MASK),
        "3 masked of 180",
        np.arange(180).reshape(60, 3)[WHOLE],
    ),
    "of numbers": (MASKED[:, 1], "1 masked of 60", ROWS[~MASK[:, 1], 1]),
    "of matrices": (MASKED.reshape(60, 3, 1), "3 masked of 180", ROWS[WHOLE, :, None]),
    "a list of rows": (list(MASKED), "3 masked of 180", ROWS[WHOLE]),
    "in a dict": (
        {"a": MASKED[:, 0], "b": MASKED[:, 1:]},
        r"`data\['a'\]` without masked entries; got 1 masked of 60",
        ROWS[WHOLE],
    ),
    "one of a dict": (
        {"a": ROWS[:, 0], "b": MASKED[:, 1:]},
        r"`data\['b'\]` without masked entries; got 2 masked of 120",
        ROWS[WHOLE],
    ),
    "a list in a dict": (
        {"a": ROWS[:, 0], "b": list(MASKED[:, 1:])},
        r"`data\['b'\]` without masked entries; got 2 masked of 120",
        ROWS[WHOLE],
    ),
}


@pytest.mark.parametrize(("data", "says", "rows"), MASKS.values(), ids=MASKS.keys())
def test_masked_entries_are_counted_and_left_out(data, says, rows, learned):
    message = refusal(data, error=ValueError)
    assert re.search(says, message), message
    found, *_ = learned(**after(message, data=data))["events"]
    np.testing.assert_array_equal(found, rows)


def test_what_is_beside_masked_rows_is_left_out_too(learned):
    weights = np.arange(1.0, 61.0)
    for data, context in ((MASKED, ROWS), (ROWS, MASKED), ({"a": ROWS}, {"c": MASKED}), (pd.DataFrame(ROWS), MASKED)):
        given = {"data": data, "context": context, "weights": weights}
        found = learned(**after(refusal(**given, error=ValueError), **given))
        np.testing.assert_array_equal(found["events"][0], ROWS[WHOLE])
        np.testing.assert_array_equal(found["contexts"][0], ROWS[WHOLE])


def test_a_masked_weight_is_none(learned):
    given = {"data": ROWS, "weights": MASKED[:, 0] ** 2}
    message = refusal(**given, error=ValueError)
    assert "`weights` without masked entries; got 1 masked of 60" in message
    found, *_ = learned(**after(message, **given))["events"]
    np.testing.assert_array_equal(found, ROWS[~MASK[:, 0]])


def test_without_a_masked_entry_a_masked_array_is_an_array(learned):
    unmasked = np.ma.MaskedArray(ROWS, np.zeros_like(ROWS, bool))
    found = learned({"a": unmasked}, np.ma.MaskedArray(ROWS), weights=np.ma.MaskedArray(np.ones(60)))
    np.testing.assert_array_equal(found["events"][0], ROWS)
    np.testing.assert_array_equal(found["contexts"][0], ROWS)


PLAIN = fd.FlowDensity(gaussian_flow())
PAIR = np.ma.MaskedArray([[0.5, 1.0], [1.0, -9999.0]], [[0, 0], [0, 1]])
ELSEWHERE = {
    "log_prob": lambda: PLAIN.log_prob(PAIR),
    "log_prob of a list": lambda: PLAIN.log_prob(list(PAIR)),
    "to_base": lambda: PLAIN.to_base(PAIR),
    "from_base": lambda: PLAIN.from_base(PAIR),
    "pack": lambda: fd.FlowDensity(named_flow()).pack({"a": PAIR[:, 1], "tau": 1.0, "v": np.ones(2)}),
    "unpack": lambda: fd.FlowDensity(named_flow()).unpack(np.ma.MaskedArray(np.ones(4), [0, 0, 0, 1])),
    "given": lambda: fd.FlowDensity(conditional_gaussian_flow()).given(np.ma.MaskedArray(np.ones(3), [0, 1, 0])),
    "given by name": lambda: fd.FlowDensity(named_flow(conditional=True)).given(
        {"s": np.ones((2, 2)), "t": PAIR[:, 1]}
    ),
    "log_prob of a rounded one": lambda: fd.Rounded(dist.Normal(), 1.0).log_prob(PAIR),
    "a unit": lambda: fd.Rounded(dist.Normal().expand([2]).to_event(1), PAIR[1] ** 2),
    "dequantize": lambda: fd.dequantize(KEY, np.ma.MaskedArray([1, 2, -9999], [0, 0, 1])),
    "bits_per_dimension": lambda: fd.bits_per_dimension(PAIR, 2),
    "diagnose": lambda: fd.diagnose(KEY, PLAIN, PAIR, progress=False),
    "diagnose, a context": lambda: fd.diagnose(
        KEY, fd.FlowDensity(conditional_gaussian_flow()), context=MASKED, progress=False
    ),
    "fit_divergence": lambda: fd.fit_divergence(KEY, PLAIN.model, PAIR, progress=False),
    "fit_likelihood": lambda: fd.fit_likelihood(KEY, ROWS, weights=MASKED[:, 0], progress=False),
    "check_support": lambda: fd.check_support(
        xr.Dataset({"x": (("chain", "draw", "i"), np.zeros((2, 3, 2)))}), PLAIN, data=PAIR
    ),
    "plot_density": lambda: fd.plots.plot_density(KEY, PLAIN, PAIR),
}


@pytest.mark.parametrize("call", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_masked_entries_are_refused_wherever_arrays_are_taken(call):
    with pytest.raises(ValueError, match=r" expected `.*` without masked entries; got \d masked of \d+.*Fix: "):
        call()


NULLABLE = {
    "Int64": lambda column: pd.Series(np.round(10.0 * column).astype(int)).astype("Int64"),
    "Float64": lambda column: pd.Series(column, dtype="Float64"),
    "Float32": lambda column: pd.Series(column, dtype="Float32"),
    "objects": lambda column: pd.Series(column, dtype=object),
    "sparse": lambda column: pd.Series(pd.arrays.SparseArray(np.where(column > 0.5, column, 0.0), fill_value=0.0)),
    "boolean": lambda column: pd.Series(column > 0.0, dtype="boolean"),
}


@pytest.mark.parametrize("kind", NULLABLE)
def test_columns_of_pandas_that_may_lack_values(kind, learned):
    series = NULLABLE[kind](ROWS[:, 0])
    expected = series.astype(float).to_numpy()
    for data in ({"a": series, "b": ROWS[:, 1]}, pd.DataFrame({"a": series, "b": ROWS[:, 1]})):
        np.testing.assert_array_equal(columns(learned(data))["a"], expected)
    np.testing.assert_array_equal(learned(series)["events"][0], expected)
    lacking = series.copy() if kind != "sparse" else series.sparse.to_dense()
    lacking[[4, 7]] = pd.NA if kind != "sparse" else np.nan
    if kind == "sparse":
        lacking = pd.Series(pd.arrays.SparseArray(lacking))
    keep = np.ones(60, bool)
    keep[[4, 7]] = False
    for data in ({"a": lacking, "b": ROWS[:, 1]}, pd.DataFrame({"a": lacking, "b": ROWS[:, 1]})):
        message = refusal(data, error=ValueError)
        assert re.search(
            r"`data\['a'\]` with finite values; got nan at index \(4,\), and 2 such rows of 60", message
        ), message
        np.testing.assert_array_equal(columns(learned(**after(message, data=data)))["a"], expected[keep])


FINITE = np.ones(60, bool)
FINITE[[4, 7]] = False


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["array", "list", "frame", "dict", "Dataset", "DataArray", "arviz", "series"])
def test_rows_that_are_not_finite_are_left_out_by_the_line(kind, value, learned):
    rows = ROWS.copy()
    rows[4, 1] = rows[7, 2] = value
    chains = rows.reshape(2, 30, 3)
    data = {
        "array": rows,
        "list": rows.tolist(),
        "frame": pd.DataFrame(rows, columns=list("abc")),
        "dict": {"a": rows[:, 0], "b": rows[:, 1:].tolist()},
        "Dataset": xr.Dataset(
            {"a": (("chain", "draw"), chains[..., 0]), "b": (("chain", "draw", "sample"), chains[..., 1:])}
        ),
        "DataArray": xr.DataArray(chains, dims=("chain", "draw", "i"), name="a"),
        "arviz": in_arviz(posterior={"a": chains[..., 0], "b": chains[..., 1:]}),
        "series": pd.Series(rows[:, 1]),
    }[kind]
    keep = FINITE | (np.arange(60) == 7) if kind == "series" else FINITE
    expected = ROWS[keep, 1] if kind == "series" else ROWS[keep]
    message = refusal(data, error=ValueError)
    if kind == "frame" and np.isnan(value):
        assert message.endswith("Fix: data = data.dropna()")
    np.testing.assert_array_equal(learned(**after(message, data=data))["events"][0], expected)
    given = {"data": data, "context": ROWS, "weights": np.arange(1.0, 61.0)}
    found = learned(**after(refusal(**given, error=ValueError), **given))
    np.testing.assert_array_equal(found["events"][0], expected)
    np.testing.assert_array_equal(found["contexts"][0], ROWS[keep])
    given = {"data": ROWS, "context": data}
    found = learned(**after(refusal(**given, error=ValueError), **given))
    np.testing.assert_array_equal(found["contexts"][0], expected)


class Table:
    """What tables of other libraries have in common."""

    def __init__(self, frame):
        self.frame = frame

    def to_pandas(self):
        if self.frame is None:
            raise ModuleNotFoundError("No module named 'pyarrow'")
        return self.frame

    @property
    def columns(self):
        return ["a", "b"]

    def __getitem__(self, name):
        return pd.Series(ROWS[:, "ab".index(name)])

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("its names would be lost")


class Later:
    """A table that has not been computed."""

    columns = ("a", "b")

    def __init__(self, frame):
        self.frame = frame

    def compute(self):
        return self.frame


def test_tables_of_other_libraries_go_through_pandas(learned):
    frame = pd.DataFrame({"a": ROWS[:, 0], "to_pandas": ROWS[:, 1]})
    assert list(columns(learned(Table(frame)))) == ["a", "to_pandas"]
    lacking = Table(frame.where(frame["a"] > -1.0))
    message = refusal(lacking, error=ValueError)
    assert message.endswith("Fix: data = data.to_pandas().dropna()")
    assert len(learned(**after(message, data=lacking))["events"][0]) == np.sum(ROWS[:, 0] > -1.0)


def test_a_table_that_is_not_there_yet_is_refused(learned):
    for table in (Table(None), Later(pd.DataFrame({"a": ROWS[:, 0], "b": ROWS[:, 1]}))):
        found = columns(learned(**after(refusal(table, error=TypeError), data=table)))
        assert list(found) == ["a", "b"]
        np.testing.assert_array_equal(found["b"], ROWS[:, 1])


# What is no numbers -------------------------------------------------------------------------------


class Tensor:
    """What PyTorch's tensors do if they have gradients."""

    def __init__(self, values):
        self.own = values

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.own


@functools.cache
def sampled():
    """A run of NUTS in two chains."""
    kernel = NUTS(lambda: numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2])))
    mcmc = MCMC(kernel, num_warmup=20, num_samples=50, num_chains=2, chain_method="vectorized", progress_bar=False)
    mcmc.run(KEY)
    return mcmc


DATES = pd.date_range("2020-01-01", periods=60, freq="D").to_series(index=range(60))
NO_NUMBERS = {
    "a run of NUTS": (sampled, "got MCMC", r"data = data\.get_samples\(\)"),
    "a distribution": (lambda: dist.Normal(0.0, 1.0), "got Normal", r"data = data\.sample\("),
    "a tensor with gradients": (
        lambda: Tensor(ROWS),
        "got Tensor .*requires grad",
        r"data = data\.detach\(\)\.cpu\(\)\.numpy\(\)",
    ),
    "such a tensor in a dict": (
        lambda: {"a": Tensor(ROWS)},
        r"`data\['a'\]`.*got Tensor",
        r"data\['a'\] = data\['a'\]\.detach",
    ),
    "a set": (lambda: {1.0, 2.0, 4.0}, "got set", "list"),
    "values of a dict": (lambda: dict(enumerate(ROWS)).values(), "got dict_values", "list"),
    "an iterator": (lambda: iter(ROWS), "got .*iterator", "list"),
    "dicts by row": (lambda: [{"a": a, "b": b} for a, b, _ in ROWS], "got list", "pandas"),
    "complex": (lambda: ROWS + 1j * ROWS[::-1], "complex128", "numpy.real"),
    "text": (lambda: np.array(["x", "y", "z"])[np.arange(60) % 3], "<U1", "numpy.unique"),
    "numbers in words": (lambda: ROWS.astype(str), "<U", "float"),
    "dates": (lambda: DATES.to_numpy(), "datetime64", "timedelta64"),
    "a column of dates": (
        lambda: pd.DataFrame({"a": ROWS[:, 0], "t": DATES}),
        r"`data\['t'\]`.*datetime64",
        "pandas.Timedelta",
    ),
    "a column of dates in a zone": (
        lambda: pd.DataFrame({"a": ROWS[:, 0], "t": DATES.dt.tz_localize("UTC")}),
        r"`data\['t'\]`.*datetime64",
        "pandas.Timedelta",
    ),
    "a complex column": (lambda: pd.DataFrame({"a": ROWS[:, 0], "b": 1j * ROWS[:, 1]}), "complex128", "drop"),
    "spans of time": (
        lambda: pd.DataFrame({"a": ROWS[:, 0], "t": DATES - DATES[0]}),
        r"`data\['t'\]`.*timedelta64",
        "timedelta64",
    ),
    "a column of text": (
        lambda: pd.DataFrame({"a": ROWS[:, 0], "b": list("xyz") * 20}),
        r"`data\['b'\]`",
        r"drop\(columns='b'\)",
    ),
    "text in a dict": (lambda: {"a": ROWS[:, 0], "b": np.array(list("xyz") * 20)}, r"`data\['b'\]`", "!= 'b'"),
    "text in a Dataset": (
        lambda: xr.Dataset({"a": ("draw", ROWS[:, 0]), "b": ("draw", np.array(list("xyz") * 20))}),
        r"`data\['b'\]`",
        r"drop_vars\('b'\)",
    ),
    "a categorical column": (
        lambda: pd.DataFrame({"a": ROWS[:, 0], "b": pd.Categorical(list("xyz") * 20)}),
        r"`data\['b'\]`.*of the categories 'x', 'y', 'z'",
        r"drop\(columns='b'\)",
    ),
    "categories that are numbers": (
        lambda: pd.DataFrame({"a": ROWS[:, 0], "b": pd.Categorical(range(60))}),
        r"`data\['b'\]`.*of the categories 0, 1, 2, \.\.\.",
        r"data\['b'\] = data\['b'\]\.astype\(float\)",
    ),
}


@pytest.mark.parametrize(("make", "says", "fix"), NO_NUMBERS.values(), ids=NO_NUMBERS.keys())
def test_what_is_not_numbers_is_refused_with_a_line_that_makes_some(make, says, fix, learned):
    data = make()
    message = refusal(data, error=TypeError)
    assert re.search(says, message), message
    assert re.search(f"Fix: .*{fix}", message), message
    learned(**after(message, data=data))


def test_categories_of_a_context_become_columns_of_zeros_and_ones(learned):
    context = pd.DataFrame({"x": ROWS[:, 0], "b": pd.Categorical(list("uvw") * 20), "c": list("pq") * 30})
    given = {"data": ROWS, "context": context}
    given = after(refusal(**given, error=TypeError), **given)
    given = after(refusal(**given, error=TypeError), **given)
    found = columns(learned(**given), "contexts")
    assert list(found) == ["x", "b_u", "b_v", "b_w", "c_p", "c_q"]
    np.testing.assert_array_equal(found["b_v"], np.tile([0.0, 1.0, 0.0], 20))


CONSTANT = {
    "an array": (np.column_stack([ROWS, np.ones(60)]), ROWS),
    "a dict": ({"a": ROWS, "b": np.ones(60)}, ROWS),
    "vectors in a dict": ({"a": np.column_stack([ROWS, np.ones(60)])}, ROWS),
    "a frame": (pd.DataFrame(ROWS, columns=list("abc")).assign(d=1.0), ROWS),
    "a Dataset": (xr.Dataset({"a": (("draw", "i"), ROWS), "b": ("draw", np.ones(60))}), ROWS),
}


@pytest.mark.parametrize(("table", "rows"), CONSTANT.values(), ids=CONSTANT.keys())
def test_a_constant_column_is_left_out_by_the_line(table, rows, learned):
    # The line may change a dict in place.
    for given in ({"data": ROWS, "context": copy.copy(table)}, {"data": copy.copy(table), "context": ROWS}):
        found = learned(**after(refusal(**given, error=ValueError), **given))
        for which in ("events", "contexts"):
            np.testing.assert_array_equal(found[which][0], rows)
    alone = {"data": ROWS, "context": {"c": np.ones(60)}}
    assert after(refusal(**alone, error=ValueError), **alone)["context"] is None


# Turned tables ------------------------------------------------------------------------------------


def turned(data, learned):
    """The warning that rows and columns may be exchanged, and what its line makes of the data."""
    with pytest.warns(UserWarning, match=r"fit_flow expected `data` with one event in each row; got .*Fix: ") as caught:
        learned(data)
    assert caught[0].filename == __file__
    return str(caught[0].message), after(str(caught[0].message), data=data)["data"]


TURNED = {
    "a transposed array": (ROWS.T, r"got shape \(3, 60\)", ROWS),
    "a transposed list": (ROWS.T.tolist(), r"got shape \(3, 60\)", ROWS),
    "a tuple of columns": (tuple(ROWS.T), r"got shape \(3, 60\)", ROWS),
    "a transposed frame": (pd.DataFrame(ROWS).T, r"got 60 columns", ROWS),
    "vectors in chains": (ROWS.reshape(4, 15, 3), r"got shape \(4, 15, 3\)", ROWS),
    "numbers and vectors in chains": (
        {"a": ROWS[:, 0].reshape(4, 15), "b": ROWS[:, 1:].reshape(4, 15, 2)},
        r"got shape \{'a': \(4, 15\), 'b': \(4, 15, 2\)\}",
        ROWS,
    ),
}


@pytest.mark.parametrize(("data", "says", "rows"), TURNED.values(), ids=TURNED.keys())
def test_fewer_rows_than_coordinates_by_far_are_warned_about(data, says, rows, learned):
    message, mended = turned(data, learned)
    assert re.search(says, message), message
    np.testing.assert_array_equal(learned(mended)["events"][0], rows)


def test_draws_by_chain_are_warned_about(learned):
    mcmc = sampled()
    _, mended = turned(mcmc.get_samples(group_by_chain=True), learned)
    np.testing.assert_array_equal(mended["mu"], mcmc.get_samples()["mu"])


@pytest.mark.parametrize("name", ["iris", "wine", "diabetes", "breast_cancer", "digits"])
def test_real_tables_are_not_warned_about_unless_they_are_turned(name, learned):
    table = getattr(datasets, f"load_{name}")().data
    rows = table[:, table[: len(table) // 4].std(axis=0) > 0.0]
    for data in (rows, rows[: len(rows) // 4], pd.DataFrame(rows)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            learned(data)
    varying = rows.T[:, rows.std(axis=1) > 0.0]
    _, mended = turned(varying[:, varying.std(axis=0) > 0.0], learned)
    assert mended.shape[1] == rows.shape[1]
    if name == "digits":
        learned(datasets.load_digits().images[:, 2:6, 2:6])


# A density's draws, and the modules that are not imported ------------------------------------------


def test_a_node_of_a_tree_is_resampled_like_the_tree():
    """A copy of the node with the draws of before would be a posterior that was not weighted."""
    from flowdensity.data.draws import with_draws

    values = {"mu": GROUPED["mu"][:, ::-1]}
    for posterior in (xr.DataTree(DATASET), DATASET):
        changed = with_draws(posterior, values, None, "note")
        assert type(changed) is type(posterior)
        np.testing.assert_array_equal(changed["mu"], values["mu"])


def test_a_single_chain_is_not_a_row(learned):
    given = {"data": {"a": ROWS[None, :, 0], "b": ROWS[None]}}
    message = refusal(**given, error=ValueError)
    assert "n >= 2; got (1, 60)" in message
    found = columns(learned(**after(message, **given)))
    np.testing.assert_array_equal(found["a"], ROWS[:, 0])
    np.testing.assert_array_equal(found["b"], ROWS)


def test_the_same_rows_in_another_order_are_refused():
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["a", "c"])
    shuffled = frame[["c"]].sample(frac=1.0, random_state=1)
    with pytest.raises(
        ValueError, match=r"with its rows in the order of `data`.*Fix: context = context.loc\[data.index\]"
    ):
        fd.fit_flow(KEY, frame[["a"]], shuffled)
    with pytest.raises(ValueError, match=r"columns of `data` with rows in the same order.*pandas.DataFrame\(data\)"):
        fd.fit_flow(KEY, {"a": frame["a"], "c": shuffled["c"]})
    draws = xr.DataArray(frame["a"].to_numpy().reshape(2, 25), dims=("chain", "draw"), name="a")
    draws = draws.assign_coords(chain=[0, 1], draw=range(25))
    with pytest.raises(ValueError, match=r"rows in the order of `data`.*Fix: context = context.unstack\(\)"):
        fd.fit_flow(KEY, draws, draws.rename("c").stack(sample=("draw", "chain")))


def test_other_labels_and_the_same_order_are_no_matter(learned):
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["a", "c"])
    for context in (frame[["c"]], frame[["c"]].set_axis(range(100, 150)), frame["c"].to_numpy()):
        np.testing.assert_array_equal(learned(frame[["a"]], context)["contexts"][0].ravel(), frame["c"])
    draws = xr.DataArray(frame["a"].to_numpy().reshape(2, 25), dims=("chain", "draw"), name="a")
    stacked = draws.rename("c").stack(sample=("chain", "draw"))
    np.testing.assert_array_equal(learned(draws, stacked)["contexts"][0].ravel(), frame["a"])


def test_a_dimension_of_stacked_draws_is_found_by_its_index():
    draws = xr.DataArray(np.zeros((2, 4, 3)), dims=("chain", "draw", "k")).stack(s=("chain", "draw"))
    with pytest.raises(ValueError, match=r"Fix: data = data.rename\(\{'s': 'sample'\}\)"):
        fd.fit_flow(KEY, draws)
