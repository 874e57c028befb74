"""Classes of other libraries that files can hold: layers, ODE methods and constraints.

Only the parts that are needed to create an object again are saved, so that files do not depend on the fields of the class in a
version of the library.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.random as jr
from numpyro.distributions import constraints

from .._registry import Kind, register
from .._typing import Array, ArrayLike


def _linear(weight: Array, bias: Array | None, scalar: bool) -> eqx.nn.Linear:
    outputs, inputs = weight.shape
    make = partial(eqx.nn.Linear, inputs, "scalar" if scalar else outputs, use_bias=bias is not None)
    return _layer(make, weight, bias)


def _convolution(weight: Array, bias: Array, stride: int) -> eqx.nn.Conv2d:
    outputs, inputs, *_ = weight.shape
    return _layer(partial(eqx.nn.Conv2d, inputs, outputs, kernel_size=3, stride=stride, padding=1), weight, bias)


def _layer(make: Callable[..., Any], weight: Array, bias: Array | None) -> Any:
    """Create a layer with the given weights."""
    form = eqx.filter_eval_shape(make, key=jr.key(0))
    # The bias of a scalar layer may or may not have an axis.
    if form.weight.shape != weight.shape or (bias is not None and form.bias.size != bias.size):
        raise ValueError(
            f"no layer has weights of the shapes {[leaf.shape for leaf in jax.tree.leaves((weight, bias))]}"
        )
    return eqx.tree_at(
        lambda layer: (layer.weight, layer.bias), form, (weight, bias), is_leaf=lambda leaf: leaf is None
    )


register(
    "Linear",
    Kind(
        eqx.nn.Linear,
        {"weight": Array, "bias": Array | None, "scalar": bool},
        _linear,
        lambda layer: {"weight": layer.weight, "bias": layer.bias, "scalar": layer.out_features == "scalar"},
    ),
)
register(
    "Conv2d",
    Kind(
        eqx.nn.Conv2d,
        {"weight": Array, "bias": Array, "stride": Literal[1, 2]},
        _convolution,
        lambda layer: {"weight": layer.weight, "bias": layer.bias, "stride": layer.stride[0]},
    ),
)

METHODS = (
    *(diffrax.Heun, diffrax.Midpoint, diffrax.Ralston),
    *(diffrax.Bosh3, diffrax.Tsit5, diffrax.Dopri5, diffrax.Dopri8),
)
"""Explicit Runge-Kutta methods, which have no parameters."""
for method in METHODS:
    register(f"diffrax.{method.__name__}", Kind(method, {}, method))

SINGLETONS = (
    *("real", "positive", "nonnegative", "softplus_positive", "unit_interval", "real_vector", "real_matrix"),
    *("simplex", "ordered_vector", "positive_ordered_vector", "l1_ball", "corr_cholesky", "corr_matrix"),
    *("lower_cholesky", "softplus_lower_cholesky", "scaled_unit_lower_cholesky"),
    *("positive_definite", "positive_semidefinite"),
)
"""Constraints with a single instance each, which numpyro and this package compare by identity."""
for name in SINGLETONS:
    instance = getattr(constraints, name)
    register(f"constraints.{name}", Kind(type(instance), {}, partial(getattr, constraints, name)))

PARAMETRIZED: dict[str, dict[str, Any]] = {
    "greater_than": {"lower_bound": ArrayLike},
    "greater_than_eq": {"lower_bound": ArrayLike},
    "less_than": {"upper_bound": ArrayLike},
    "less_than_eq": {"upper_bound": ArrayLike},
    "interval": {"lower_bound": ArrayLike, "upper_bound": ArrayLike},
    "open_interval": {"lower_bound": ArrayLike, "upper_bound": ArrayLike},
    "independent": {"base_constraint": constraints.Constraint, "reinterpreted_batch_ndims": int},
    "cat": {"cseq": tuple[constraints.Constraint, ...], "dim": int, "lengths": tuple[int, ...]},
    "zero_sum": {"event_dim": int},
}
"""Constraints with parameters, and the annotations of these."""
for name, fields in PARAMETRIZED.items():
    constraint = getattr(constraints, name)
    register(f"constraints.{name}", Kind(constraint, fields, constraint))
