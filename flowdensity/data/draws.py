"""Draws in the containers of arviz and xarray: find their dataset and their dimensions, and replace them.

This is the only module that distinguishes the `InferenceData` of arviz 0.x from the `DataTree` of arviz 1.x.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._arrays import is_a
from .._typing import Int

CHAINS = ("chain", "draw")
"""Names of the dimensions of draws in chains in arviz."""


def dataset_of(caller: str, name: str, values: Any) -> tuple[Any, str] | None:
    """Return a container's posterior as an xarray `Dataset`, and the code for it; None for any other object.

    Args:
        caller: public function named in the errors.
        name: name of the argument.
        values: an `InferenceData` or `DataTree` with a posterior, one of their groups, a `Dataset`, or any other object.

    Raises:
        ValueError: if a container has groups but no posterior.
    """
    if is_a(values, "xarray", "Dataset"):
        return values, name
    groups = _groups(values)
    if groups is None:
        return None
    if "posterior" not in groups:
        if _is_tree(values) and values.data_vars:
            return values.to_dataset(), f"{name}.to_dataset()"
        line = f"{name} = {name}[{next(iter(groups))!r}]" if groups else f"{name} = arviz.from_numpyro(mcmc)"
        raise ValueError(
            f"{caller} expected `{name}` with a group 'posterior', or a single group; got the groups {list(groups)}. Fix: {line}"
        )
    code = f"{name}['posterior']"
    return groups["posterior"], f"{code}.to_dataset()" if _is_tree(values) else code


def draw_dims(array: Any) -> tuple[str, ...]:
    """Return the dimensions that index the draws of an xarray object; `()` if it has no draws, or chains without draws."""
    dims = set(array.dims)
    if set(CHAINS) <= dims:
        return CHAINS
    if "chain" in dims:
        return ()
    # "draw" has priority, because "sample" may be a dimension of the variable itself.
    return next(((dim,) for dim in ("draw", "sample") if dim in dims), ())


def with_draws(
    posterior: Any, values: Mapping[str, np.ndarray], rows: Int[np.ndarray, "chain draw"] | None, note: str
) -> Any:
    """Return a container of the same type with new draws of its posterior.

    Names, dimensions and coordinates stay the same, and the draws are renumbered. Groups such as `log_likelihood` have one entry
    for each posterior draw. They are resampled by `rows`, or dropped if that is not possible. The groups of the prior and of the
    warm-up stay unchanged.

    Args:
        posterior: a container that `dataset_of` accepts, with draws in chains.
        values: new draws of the variables to keep, shape `(chain, draw, *shape)`, with as many chains as before.
        rows: index of the old draw, counted over all chains, that each new draw copies; None if the new draws are not copies of
            old draws, in which case the other groups are dropped.
        note: text for the attribute `reweighted` of the posterior group.
    """
    found = dataset_of("with_draws", "posterior", posterior)
    assert found is not None, "the posterior has been read before"
    dataset, _ = found
    before = tuple(dataset.sizes[dim] for dim in CHAINS)
    changed = _replaced(dataset[list(values)], values).assign_attrs(reweighted=note)
    groups = _groups(posterior)
    if groups is None:
        return changed
    if "posterior" not in groups:
        return type(posterior)(dataset=changed, children=posterior.children, name=posterior.name)
    result = posterior.copy()
    for name, group in groups.items():
        if name == "posterior":
            _put(result, name, changed)
        elif "draw" not in group.dims or "prior" in name or name.startswith("warmup"):
            continue
        elif rows is None or tuple(group.sizes.get(dim) for dim in CHAINS) != before:
            del result[name]
        else:
            chained = {key: array for key, array in group.data_vars.items() if set(CHAINS) <= set(array.dims)}
            _put(result, name, _replaced(group, {key: _taken(array, rows) for key, array in chained.items()}))
    return result


def _is_tree(values: Any) -> bool:
    return is_a(values, "xarray", "DataTree")


def _groups(values: Any) -> dict[str, Any] | None:
    """Return the datasets of a container by group, or None if it has no groups."""
    if _is_tree(values):
        return {name: group.to_dataset() for name, group in values.children.items()}
    if is_a(values, "arviz", "InferenceData"):
        return {name: values[name] for name in values.groups()}
    return None


def _put(container: Any, name: str, dataset: Any) -> None:
    """Replace the dataset of a group."""
    if _is_tree(container):
        container[name] = type(container)(dataset=dataset, children=container[name].children)
    else:
        setattr(container, name, dataset)


def _replaced(dataset: Any, values: Mapping[str, np.ndarray]) -> Any:
    """Return a dataset with new draws of its variables and unchanged other dimensions and coordinates."""
    stale = [name for name, array in dataset.coords.items() if set(CHAINS) & set(array.dims) and name != "chain"]
    template = dataset.drop_vars(stale)
    arrays = {
        name: ((*CHAINS, *(dim for dim in array.dims if dim not in CHAINS)), values[str(name)], array.attrs)
        for name, array in template.data_vars.items()
        if str(name) in values
    }
    count = next(iter(values.values())).shape[1]
    return template.drop_dims("draw").assign(arrays).assign_coords(draw=np.arange(count))


def _taken(array: Any, rows: Int[np.ndarray, "chain draw"]) -> np.ndarray:
    """Return the chosen draws of a variable."""
    flat = array.transpose(*CHAINS, ...).to_numpy()
    return flat.reshape(-1, *flat.shape[2:])[rows]


def as_posterior(values: Mapping[str, Any], group: str = "posterior") -> Any:
    """Return draws, shape `(chain, draw, *shape)`, as a group of an `InferenceData`, or of a `DataTree` with arviz 1."""
    import arviz

    arrays = {name: np.asarray(value) for name, value in values.items()}
    if not arviz.__version__.startswith("0."):
        return arviz.from_dict({group: arrays})
    groups: Any = {group: arviz.dict_to_dataset(arrays)}
    return arviz.InferenceData(**groups)
