"""Supports: checks of numpyro constraints, and a joint constraint for a vector whose parts have different supports."""

from collections.abc import Sequence
from math import prod
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from .._registry import Kind, register
from .._typing import Array, ArrayLike
from .sites import Shapes, join, split


class _Joint(constraints.Constraint):
    """Constraint of a vector whose consecutive slices, each reshaped to its own shape, have different supports.

    Unlike in `constraints.cat`, a part may have several axes, and its length may differ from that of its unconstrained vector,
    as for a simplex.
    """

    event_dim = 1

    def __init__(self, parts: Sequence[constraints.Constraint], shapes: Shapes):
        self.parts = tuple(parts)
        self.shapes = tuple(shapes)

    def __call__(self, x: ArrayLike) -> Any:
        # As in numpyro's constraints, numpy arrays stay numpy arrays, so that constants are checked under `jit` too.
        xp = np if isinstance(x, np.ndarray) else jnp
        inside = [
            xp.all(xp.asarray(part(piece)), axis=tuple(range(part.event_dim - len(shape), 0)))
            for part, shape, piece in zip(self.parts, self.shapes, split(x, self.shapes), strict=True)
        ]
        return xp.all(xp.stack(inside, axis=-1), axis=-1)

    def feasible_like(self, prototype: ArrayLike) -> Array:
        pieces = split(prototype, self.shapes)
        return join([part.feasible_like(piece) for part, piece in zip(self.parts, pieces, strict=True)], self.shapes)

    def __repr__(self) -> str:
        return f"joint{self.parts}"

    def tree_flatten(self) -> Any:
        return (self.parts,), (("parts",), {"shapes": self.shapes})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, _Joint) or self.shapes != other.shapes:
            return False
        return _all_equal(self.parts, other.parts, static)


class JointTransform(Transform):
    """Transform that applies numpyro's bijection to each part of a `_Joint`."""

    def __init__(self, transforms: Sequence[Transform], shapes: Shapes):
        self.transforms = tuple(transforms)
        self.shapes = tuple(shapes)

    @property
    def domain(self) -> constraints.Constraint:
        return constraints.real_vector

    @property
    def codomain(self) -> constraints.Constraint:
        return _Joint([transform.codomain for transform in self.transforms], self.shapes)

    @property
    def inner(self) -> Shapes:
        """Shapes of the unconstrained parts."""
        return tuple(t.inverse_shape(shape) for t, shape in zip(self.transforms, self.shapes, strict=True))

    def __call__(self, x: ArrayLike) -> Array:
        pieces = zip(self.transforms, split(x, self.inner), strict=True)
        return join([transform(piece) for transform, piece in pieces], self.shapes)

    def _inverse(self, y: ArrayLike) -> Array:
        pieces = zip(self.transforms, split(y, self.shapes), strict=True)
        return join([transform._inverse(piece) for transform, piece in pieces], self.inner)

    def log_abs_det_jacobian(self, x: ArrayLike, y: ArrayLike, intermediates: Any = None) -> Array:
        total = jnp.zeros(())
        for transform, inner, outer in zip(self.transforms, split(x, self.inner), split(y, self.shapes), strict=True):
            stretch = jnp.asarray(transform.log_abs_det_jacobian(inner, outer))
            total = total + jnp.sum(stretch, axis=tuple(range(jnp.ndim(x) - 1, stretch.ndim)))
        return total

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], _length(self.shapes))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], _length(self.inner))

    def tree_flatten(self) -> Any:
        return (self.transforms,), (("transforms",), {"shapes": self.shapes})

    def eq(self, other: object, static: bool = False) -> ArrayLike:
        if not isinstance(other, JointTransform) or self.shapes != other.shapes:
            return False
        return _all_equal(self.transforms, other.transforms, static)


joint = _Joint
"""Constructor of a joint constraint; as in numpyro, the class itself has a leading underscore."""
register("constraints.joint", Kind(joint, {"parts": tuple[constraints.Constraint, ...], "shapes": Shapes}, joint))


@biject_to.register(_Joint)
def _biject_to_joint(constraint: _Joint) -> JointTransform:
    return JointTransform([biject_to(part) for part in constraint.parts], constraint.shapes)


def check_support(
    caller: str, name: str, support: object, put: str = "support = {}", label: str = "data"
) -> constraints.Constraint:
    """Check that a density can be learned on a support: numpyro must have a smooth bijection from the real line for it.

    Args:
        caller: public function named in the errors.
        name: expression for the argument, including its index or key.
        support: the object to check.
        put: line that sets another support, which replaces `{}`.
        label: expression for the values on the support.

    Raises:
        TypeError: if `support` is not a constraint.
        ValueError: if the support is circular or discrete, or has no bijection.
    """
    if not isinstance(support, constraints.Constraint):
        got = repr(support) if isinstance(support, str) else type(support).__name__
        raise TypeError(
            f"{caller} expected `{name}` to be a constraint of numpyro; got {got}. "
            f"Fix: {put.format(_constraint_called(support))}"
        )
    if isinstance(getattr(support, "base_constraint", support), type(constraints.circular)):
        raise ValueError(
            f"{caller} expected `{name}` with two endpoints; got {support}, which has none. A map from the real line must cut "
            "the circle at one point. Rotate the angles so that none is near the cut, and use an interval. "
            f"Fix: {put.format('constraints.interval(-numpy.pi, numpy.pi)')}"
        )
    try:
        if support.is_discrete:
            raise ValueError(
                f"{caller} expected a continuous `{name}`; got {support}. Integers have no density. Dequantize them, and use "
                f"fd.Rounded for their probabilities. Fix: {label} = fd.dequantize(key, {label}); "
                f"{put.format('constraints.real')}"
            )
        biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"{caller} expected `{name}` with a bijection from the real line; numpyro has none for {support!r}. "
            f"Try other coordinates. Fix: {put.format('constraints.real')}"
        ) from error
    return support


def free_size(support: constraints.Constraint, shape: tuple[int, ...]) -> int:
    """Number of unconstrained coordinates of an event; smaller than its size if its entries are dependent, as on a simplex."""
    return prod(biject_to(support).inverse_shape(shape))


def _length(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes)


def _all_equal(ours: Sequence[Any], theirs: Sequence[Any], static: bool) -> ArrayLike:
    """Compare constraints or transforms pairwise with numpyro's `eq`."""
    same = [mine.eq(their, static=static) for mine, their in zip(ours, theirs, strict=True)]
    return all(same) if static else jnp.all(jnp.stack([jnp.asarray(each) for each in same]))


def code_of(support: constraints.Constraint) -> str | None:
    """Return the code for a numpyro constraint; None if it cannot be written as a short expression."""
    known = vars(constraints).items()
    for name, each in known:
        if each is support:
            return f"constraints.{name}"
    factories = [name for name, each in known if each is type(support) and not name.startswith("_")]
    if not factories:
        return None
    values, (names, others) = support.tree_flatten()
    arguments = dict(zip(names, values, strict=True)) | others
    if not all(isinstance(value, int | float) for value in arguments.values()):
        return None
    return f"constraints.{factories[0]}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def _constraint_called(name: object) -> str:
    """Return the code for the constraint of a name, or `constraints.real` if there is no such constraint."""
    found = getattr(constraints, name, None) if isinstance(name, str) else None
    return f"constraints.{name}" if isinstance(found, constraints.Constraint) else "constraints.real"
