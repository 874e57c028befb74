"""The types that are written to files: a closed list.

A file names them, and a name that is not here makes nothing. What an object of a class is made of is what the class's own
annotations say; of a library's class as little as it takes to make one anew, whatever its fields are in another version.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

import diffrax
import equinox as eqx
import jax
import jax.random as jr
import jaxtyping
from numpyro.distributions import constraints

from ._typing import Array, ArrayLike
from .data.scaling import Scaling
from .data.sites import Shapes, Sites
from .data.supports import joint
from .data.transforms.affine import Affine
from .data.transforms.candidates import COORDINATEWISE, RADIAL
from .data.transforms.interface import Chain
from .data.transforms.support import FromSupport
from .distributions.amortized import AmortizedDensity
from .distributions.flow import FlowDensity
from .divergence.calibration import Residuals
from .divergence.exact import ExactDivergence
from .divergence.interface import AbstractDivergence
from .divergence.stein import DivergenceHead, SteinDivergence
from .divergence.stochastic import HutchinsonDivergence, HutchPlusPlusDivergence
from .models.energy import EnergyNetwork, QuadraticExperts
from .models.fields import VelocityField
from .models.flows import AbstractProbabilityFlow, GaussianFlow
from .models.mixture import GaussianMixture
from .models.networks import AbstractNetwork, ResidualMLP, ScalarMLP
from .models.paths import CondOT, Trigonometric, VarianceExploding, VariancePreserving
from .models.pretrained import Denoiser, Discrete, Negated, PretrainedDiffusion, Raw, Sigma, Table
from .models.unet import Block, UNet
from .solving import AbstractSolver, Adaptive, FixedStep
from .training.loop import History
from .training.reference import ReferenceChoice
from .training.report import Amortisation, FitReport, StepErrors

OWN = (AbstractNetwork, Callable[..., Any])
"""Annotations of what may be a user's own."""


class Kind(NamedTuple):
    """A type that is written to files.

    Attributes:
        cls: the type.
        fields: names and annotations of what an object of it is made of.
        make: makes one of that.
        parts: takes one apart.
    """

    cls: type
    fields: Mapping[str, Any]
    make: Callable[..., Any]
    parts: Callable[[Any], dict[str, Any]] | None = None


def conforms(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; a number may stand for an array that is a scalar."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, UnionType):
        return any(conforms(value, each) for each in args)
    if origin is Literal:
        return any(value is each or (isinstance(value, str) and value == each) for each in args)
    if origin is tuple and args[-1:] == (...,):
        return isinstance(value, tuple) and all(conforms(item, args[0]) for item in value)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(args) and all(map(conforms, value, args))
    if origin is list:
        return isinstance(value, list) and all(conforms(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(conforms(item, args[1]) for item in value.values())
    if hint == Callable[..., Any]:
        return callable(value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray) and hint.dim_str == "":
        return isinstance(value, hint) or (isinstance(value, Real) and not isinstance(value, bool))
    return isinstance(value, hint)


# The list -----------------------------------------------------------------------------------------


def _module(cls: type, /, **parts: Any) -> Any:
    """An equinox module of its fields, as they are: its `__init__` would make others."""
    module = object.__new__(cls)
    for name, part in parts.items():
        object.__setattr__(module, name, part)
    if hasattr(cls, "__check_init__"):
        module.__check_init__()
    return module


def _linear(weight: Array, bias: Array | None, scalar: bool) -> eqx.nn.Linear:
    outputs, inputs = weight.shape
    make = partial(eqx.nn.Linear, inputs, "scalar" if scalar else outputs, use_bias=bias is not None)
    return _layer(make, weight, bias)


def _convolution(weight: Array, bias: Array, stride: int) -> eqx.nn.Conv2d:
    outputs, inputs, *_ = weight.shape
    return _layer(partial(eqx.nn.Conv2d, inputs, outputs, kernel_size=3, stride=stride, padding=1), weight, bias)


def _layer(make: Callable[..., Any], weight: Array, bias: Array | None) -> Any:
    """A layer of the library's with some weights: without its fields, which need not be those of another version."""
    form = eqx.filter_eval_shape(make, key=jr.key(0))
    # The bias of a scalar may have an axis or none.
    if form.weight.shape != weight.shape or (bias is not None and form.bias.size != bias.size):
        raise ValueError(
            f"no layer has weights of the shapes {[leaf.shape for leaf in jax.tree.leaves((weight, bias))]}"
        )
    return eqx.tree_at(
        lambda layer: (layer.weight, layer.bias), form, (weight, bias), is_leaf=lambda leaf: leaf is None
    )


def _flow_parts(density: FlowDensity) -> dict[str, Any]:
    model, context = density.model, density.context
    # Held flat, it is handed over in its own shape.
    if context is not None:
        context = context.reshape(*context.shape[:-1], *model.context_shape) if context.shape[-1] else None
    return {
        "model": model,
        "context": context,
        "divergence": density.divergence,
        "solver": density.solver,
        "validate_args": density.__dict__.get("_validate_args"),
    }


def _amortized_parts(density: AmortizedDensity) -> dict[str, Any]:
    return {"energy": density.energy, "flow": density.flow, "validate_args": density.__dict__.get("_validate_args")}


def _fields(cls: type) -> dict[str, Any]:
    return {field.name: field.type for field in dataclasses.fields(cls)}


def _constraint(name: str, fields: dict[str, Any]) -> Kind:
    cls = getattr(constraints, name)
    return Kind(cls, fields, cls)


def _single(name: str) -> Kind:
    instance = getattr(constraints, name)
    return Kind(type(instance), {}, lambda: instance)


MODULES = (
    *(GaussianFlow, VelocityField, PretrainedDiffusion, Table, Sigma, Negated, Raw, Denoiser),
    *(CondOT, Trigonometric, VariancePreserving, VarianceExploding, Discrete),
    *(Scaling, Chain, FromSupport, Affine, *(candidate.cls for candidate in (*COORDINATEWISE, *RADIAL))),
    *(GaussianMixture, ResidualMLP, UNet, Block, ScalarMLP, QuadraticExperts, EnergyNetwork, DivergenceHead),
    *(ExactDivergence, HutchinsonDivergence, HutchPlusPlusDivergence, SteinDivergence, FixedStep, Adaptive),
)
REPORTS = (FitReport, History, Residuals, ReferenceChoice, StepErrors, Amortisation)
METHODS = (
    *(diffrax.Heun, diffrax.Midpoint, diffrax.Ralston),
    *(diffrax.Bosh3, diffrax.Tsit5, diffrax.Dopri5, diffrax.Dopri8),
)
SINGLE = (
    *("real", "positive", "nonnegative", "softplus_positive", "unit_interval", "real_vector", "real_matrix"),
    *("simplex", "ordered_vector", "positive_ordered_vector", "l1_ball", "corr_cholesky", "corr_matrix"),
    *("lower_cholesky", "softplus_lower_cholesky", "scaled_unit_lower_cholesky"),
    *("positive_definite", "positive_semidefinite"),
)
"""Constraints of which there is one instance each, which numpyro and this package compare by identity."""
BOUNDED = {
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
"""Constraints that are made of something."""

KINDS: dict[str, Kind] = {
    **{cls.__name__: Kind(cls, _fields(cls), partial(_module, cls)) for cls in MODULES},
    **{cls.__name__: Kind(cls, _fields(cls), cls) for cls in REPORTS},
    **{f"diffrax.{cls.__name__}": Kind(cls, {}, cls) for cls in METHODS},
    **{f"constraints.{name}": _constraint(name, fields) for name, fields in BOUNDED.items()},
    **{f"constraints.{name}": _single(name) for name in SINGLE},
    "constraints.joint": Kind(joint, {"parts": tuple[constraints.Constraint, ...], "shapes": Shapes}, joint),
    "Sites": Kind(Sites, {"names": tuple[str, ...], "shapes": Shapes}, Sites),
    "Linear": Kind(
        eqx.nn.Linear,
        {"weight": Array, "bias": Array | None, "scalar": bool},
        _linear,
        lambda layer: {"weight": layer.weight, "bias": layer.bias, "scalar": layer.out_features == "scalar"},
    ),
    "Conv2d": Kind(
        eqx.nn.Conv2d,
        {"weight": Array, "bias": Array, "stride": Literal[1, 2]},
        _convolution,
        lambda layer: {"weight": layer.weight, "bias": layer.bias, "stride": layer.stride[0]},
    ),
    "FlowDensity": Kind(
        FlowDensity,
        {
            "model": AbstractProbabilityFlow,
            "context": Array | None,
            "divergence": AbstractDivergence,
            "solver": AbstractSolver,
            "validate_args": bool | None,
        },
        FlowDensity,
        _flow_parts,
    ),
    "AmortizedDensity": Kind(
        AmortizedDensity,
        {"energy": EnergyNetwork, "flow": FlowDensity, "validate_args": bool | None},
        AmortizedDensity,
        _amortized_parts,
    ),
}
"""By their names in files: a class that is renamed keeps the one it has here."""

NAMES: dict[type, str] = {kind.cls: name for name, kind in KINDS.items()}
