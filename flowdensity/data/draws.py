"""Draws in the containers of arviz and xarray: find their dataset, tell which dimensions count them, and replace them.

This is the only place that distinguishes the `InferenceData` of arviz 0.x from the `DataTree` of arviz 1.x.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._arrays import is_a
from .._typing import Int

CHAINS = ("chain", "draw")
"""Dimensions of draws in chains, as arviz calls them."""


def dataset_of(caller: str, name: str, values: Any) -> tuple[Any, str] | None:
    """Return a container's posterior as an xarray `Dataset`, and the code for it; None if `values` is no such container.

    Args:
        caller: public function whose name the errors carry.
        name: name of the argument.
        values: an `InferenceData` or `DataTree` with a posterior, one of their groups, or a `Dataset`.

    Raises:
        ValueError: if a container has groups, but no posterior.
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
            f"{caller} expected `{name}` with a posterior, or one of the groups; got the groups {list(groups)}. Fix: {line}"
        )
    code = f"{name}['posterior']"
    return groups["posterior"], f"{code}.to_dataset()" if _is_tree(values) else code


def draw_dims(array: Any) -> tuple[str, ...]:
    """Return the dimensions of an xarray object that count its draws; none if it has no draws, or chains alone."""
    dims = set(array.dims)
    if set(CHAINS) <= dims:
        return CHAINS
    if "chain" in dims:
        return ()
    # "draw" comes first, since "sample" may be a dimension of the user's own.
    return next(((dim,) for dim in ("draw", "sample") if dim in dims), ())


def with_draws(
    posterior: Any, values: Mapping[str, np.ndarray], rows: Int[np.ndarray, "chain draw"] | None, note: str
) -> Any:
    """Return a container of the same type with other draws of its posterior.

    Names, dimensions and coordinates stay, and draws are numbered anew. Groups such as `log_likelihood`, whose draws are
    those of the posterior, follow it or are left out; the groups of the prior and of the warm-up stay as they are.

    Args:
        posterior: what `dataset_of` takes, with draws in chains.
        values: new draws of the variables to keep, shape `(chain, draw, *shape)`, with as many chains as before.
        rows: which old draw, counted over all chains, each new one is, so that the other groups can follow; None if new
            draws are no copies of old ones, and the other groups are left out.
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
    """The datasets of a container by group, or None if it has no groups."""
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
    """A dataset with other draws of its variables, whose other dimensions and coordinates stay."""
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
    """The chosen draws of a variable."""
    flat = array.transpose(*CHAINS, ...).to_numpy()
    return flat.reshape(-1, *flat.shape[2:])[rows]
