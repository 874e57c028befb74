"""Named values: one vector and back, and a row for each event from whatever holds them."""

import inspect

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from flowdensity.data.sites import Sites, join, named_columns, split

SHAPES = ((), (3,), (2, 2))
SITES = Sites(("mu", "w", "m"), SHAPES)


def values(**batch: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Distinct whole numbers for each site, behind batch axes of its own."""
    shapes = [(*batch.get(name, ()), *shape) for name, shape in zip(*SITES, strict=True)]
    starts = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    return {
        name: float(start) + np.arange(np.prod(shape)).reshape(shape)
        for name, shape, start in zip(SITES.names, shapes, starts[:-1], strict=True)
    }


# One vector --------------------------------------------------------------------------------------


def test_values_lie_behind_each_other_in_the_order_of_the_sites():
    shuffled = dict(reversed(values().items()))
    np.testing.assert_array_equal(SITES.pack("f", shuffled), np.arange(8.0))
    assert list(SITES.unpack(jnp.arange(8.0))) == ["mu", "w", "m"]


BATCHES = {
    "none": {},
    "the same": {"mu": (5,), "w": (5,), "m": (5,)},
    "one of them": {"w": (5,)},
    "of length one": {"mu": (4, 1), "w": (3,), "m": (4, 3)},
}


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES.keys())
def test_unpack_undoes_pack_up_to_broadcasting(batch):
    given = values(**batch)
    leading = np.broadcast_shapes(*batch.values())
    vector = SITES.pack("f", given)
    assert vector.shape == (*leading, 8)
    again = SITES.unpack(vector)
    for name, shape in zip(*SITES, strict=True):
        np.testing.assert_array_equal(again[name], np.broadcast_to(given[name], (*leading, *shape)))
    np.testing.assert_array_equal(SITES.pack("f", again), vector)


def test_whole_numbers_and_lists_become_real():
    vector = Sites(("n", "v"), ((), (2,))).pack("f", {"n": 3, "v": [1, 2]})
    assert jnp.issubdtype(vector.dtype, jnp.floating)
    np.testing.assert_array_equal(vector, [3.0, 1.0, 2.0])


def test_packing_is_traced_mapped_and_differentiated():
    given = values(mu=(5,), w=(5,), m=(5,))
    vectors = jax.jit(jax.vmap(lambda each: SITES.pack("f", each)))(given)
    np.testing.assert_array_equal(vectors, SITES.pack("f", given))
    slope = jax.grad(lambda each: SITES.pack("f", each)[4:6].sum())(values())
    np.testing.assert_array_equal(slope["m"], [[1.0, 1.0], [0.0, 0.0]])
    assert not np.any(slope["w"])


def test_numpy_stays_numpy_in_double_precision():
    vector = 1.0 + np.arange(16.0).reshape(2, 8) * 1e-12
    pieces = split(vector, SHAPES)
    assert [piece.shape for piece in pieces] == [(2,), (2, 3), (2, 2, 2)]
    for array in (*pieces, join(pieces, SHAPES)):
        assert isinstance(array, np.ndarray)
        assert array.dtype == np.float64
    np.testing.assert_array_equal(join(pieces, SHAPES), vector)


def test_sites_hash_and_compare():
    assert hash(SITES) == hash(Sites(("mu", "w", "m"), SHAPES))
    assert Sites(("mu", "w", "m"), ((), (3,), (4,))) != SITES
    assert Sites(("w", "mu", "m"), SHAPES) != SITES


REFUSED = {
    "missing": ({"mu": 0.0, "w": np.zeros(3)}, r"sites \['mu', 'w', 'm'\]; got \['mu', 'w'\]"),
    "too many": (values() | {"sigma": 1.0}, r"got \['m', 'mu', 'sigma', 'w'\]"),
    "none": ({}, r"got \[\]"),
    "too few axes": (values() | {"w": 1.0}, r"'w' with shape \(3,\) behind its batch axes; got \(\)"),
    "another length": (values() | {"w": np.zeros(4)}, r"'w' with shape \(3,\).*got \(4,\)"),
    "batch axes behind": (values() | {"m": np.zeros((2, 2, 5))}, r"'m' with shape \(2, 2\).*got \(2, 2, 5\)"),
    "batch axes that disagree": (values(mu=(5,), w=(4,)), r"broadcast.*'mu': \(5,\), 'w': \(4,\), 'm': \(\)"),
}


@pytest.mark.parametrize(("given", "says"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_do_not_fit_are_refused(given, says):
    with pytest.raises(ValueError, match=rf"somebody expected .*{says}.* Fix: "):
        SITES.pack("somebody", given)


# Where they come from ----------------------------------------------------------------------------

CHAINS, DRAWS = 2, 5
GROUPED = {
    "mu": np.arange(10.0).reshape(CHAINS, DRAWS),
    "w": 100.0 + np.arange(30.0).reshape(CHAINS, DRAWS, 3),
    "m": 200.0 + np.arange(40.0).reshape(CHAINS, DRAWS, 2, 2),
}
FLAT = {name: array.reshape(10, *array.shape[2:]) for name, array in GROUPED.items()}
"""As `MCMC.get_samples()` has them: the second chain behind the first."""


def inference_data():
    """InferenceData of arviz 0.23, DataTree of arviz 1."""
    old = "posterior" in inspect.signature(arviz.from_dict).parameters
    return arviz.from_dict(posterior=GROUPED) if old else arviz.from_dict({"posterior": GROUPED})


def dataset(**dims: tuple[str, ...]) -> xr.Dataset:
    """The same draws as an xarray Dataset, each variable's axes in the order that `dims` says."""
    own = {"mu": ("chain", "draw"), "w": ("chain", "draw", "i"), "m": ("chain", "draw", "j", "k")}
    return xr.Dataset({name: xr.DataArray(GROUPED[name], dims=own[name]) for name in GROUPED}).map(
        lambda variable: variable.transpose(*dims.get(variable.name, own[variable.name]))
    )


FORMS = {
    "a dict": lambda: FLAT,
    "a dict of JAX arrays": lambda: {name: jnp.asarray(array) for name, array in FLAT.items()},
    "arviz": inference_data,
    "a group of arviz": lambda: inference_data()["posterior"],
    "a posterior by attribute": lambda: inference_data().posterior,
    "a Dataset": dataset,
    "a Dataset, draws before chains": lambda: dataset(
        mu=("draw", "chain"), w=("draw", "chain", "i"), m=("draw", "chain", "j", "k")
    ),
    "a Dataset, draws last": lambda: dataset(w=("i", "chain", "draw"), m=("j", "draw", "k", "chain")),
    "a Dataset with samples last": lambda: dataset().stack(sample=("chain", "draw")),
    "arviz.extract": lambda: arviz.extract(inference_data()),
    "a Dataset of one chain": lambda: xr.Dataset(
        {name: (("draw", *(f"{name}_{i}" for i in range(1, rows.ndim))), rows) for name, rows in FLAT.items()}
    ),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_every_form_gives_the_same_rows(form):
    columns = named_columns("f", "data", form())
    assert columns is not None
    assert set(columns) == set(FLAT)
    for name, rows in FLAT.items():
        np.testing.assert_array_equal(columns[name], rows)


def test_a_selection_of_a_posterior_keeps_its_names_and_draws():
    posterior = inference_data().posterior
    chosen = named_columns("f", "data", posterior.dataset[["w"]] if hasattr(posterior, "dataset") else posterior[["w"]])
    np.testing.assert_array_equal(chosen["w"], FLAT["w"])
    assert list(chosen) == ["w"]
    later = named_columns("f", "data", dataset().sel(chain=[1]).isel(draw=slice(2, None)))
    np.testing.assert_array_equal(later["mu"], [7.0, 8.0, 9.0])
    only = named_columns("f", "data", dataset().isel(chain=1))
    np.testing.assert_array_equal(only["m"], FLAT["m"][5:])


def test_columns_of_a_frame_are_sites_of_single_numbers():
    frame = pd.DataFrame({"mu": FLAT["mu"], "sigma": np.arange(10)}, index=np.arange(10)[::-1])
    columns = named_columns("f", "data", frame)
    assert list(columns) == ["mu", "sigma"]
    np.testing.assert_array_equal(columns["mu"], FLAT["mu"])
    np.testing.assert_array_equal(columns["sigma"], np.arange(10))
    assert list(named_columns("f", "data", pd.DataFrame(np.zeros((3, 2))))) == ["0", "1"]


@pytest.mark.parametrize("nameless", [np.zeros((3, 2)), jnp.zeros(3), [[1.0], [2.0]], 3.0, None, pd.Series([1.0, 2.0])])
def test_what_has_no_names_is_left_alone(nameless):
    assert named_columns("f", "data", nameless) is None


NOT_ROWS = {
    "an empty dict": ({}, "named values; got none"),
    "a frame without columns": (pd.DataFrame(), "named values; got none"),
    "chains without draws": (dataset().isel(draw=0), r"chain and draw; got \('chain',\) for 'mu'"),
    "neither": (xr.Dataset({"mu": ("time", np.arange(3.0))}), r"got \('time',\) for 'mu'"),
    "one variable without draws": (
        dataset().assign(tau=xr.DataArray(np.zeros(3), dims=("i",))),
        r"got \('i',\) for 'tau'",
    ),
}


@pytest.mark.parametrize(("given", "says"), NOT_ROWS.values(), ids=NOT_ROWS.keys())
def test_names_without_rows_are_refused(given, says):
    with pytest.raises(ValueError, match=rf"somebody expected .*`data`.*{says}.* Fix: data="):
        named_columns("somebody", "data", given)


def test_columns_may_be_called_posterior():
    rows = np.arange(3.0)
    frame = pd.DataFrame({"posterior": rows, "b": rows})
    dataset = xr.Dataset({"posterior": ("draw", rows), "b": ("draw", rows)})
    for named in (frame, dataset):
        assert sorted(named_columns("fit_flow", "data", named)) == ["b", "posterior"]


@pytest.mark.parametrize("named", [{1: np.ones(3), "1": np.ones(3)}, pd.DataFrame(np.ones((3, 2)), columns=["a", "a"])])
def test_names_that_become_one_are_refused(named):
    with pytest.raises(ValueError, match=r"(?s)fit_flow expected `data` with a different name.*Fix: "):
        named_columns("fit_flow", "data", named)


def test_a_data_array_has_no_names():
    assert named_columns("fit_flow", "data", xr.DataArray(np.ones(3), dims=["draw"], name="a")) is None


def test_an_empty_batch_is_packed():
    assert Sites(("a", "v"), ((), (2,))).pack("pack", {"a": np.zeros(0), "v": np.zeros((0, 2))}).shape == (0, 3)
