"""Saving densities to files, and loading them.

A file contains arrays and a description of the objects they belong to, but no code. Only objects of registered classes, and of
classes that the user passes, are created from it. A file also contains a few values of the density, which the loaded density must
reproduce.
"""

import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import solving
from .._checks import check_kind, check_path
from .._container import ANEW, Tensors, read, write
from .._typing import Array, Context, State
from ..data.scaling import Scaling
from ..distributions.checks import check_density
from ..distributions.learned import AbstractLearnedDensity
from ..training.report import FitReport
from .description import Reader, Unreadable, by_name, describe

FORMAT = 1
"""Format version of files that are written."""
PROBES = 4
"""Number of states at which values of a density are stored in its file."""
TOLERANCE = 1e-3
"""Relative difference of these values that is accepted. Other hardware stays within it, and another network does not."""

Made = TypeVar("Made")


def save(file: str | os.PathLike[str], density: AbstractLearnedDensity, report: FitReport | None = None) -> None:
    """Write a density to one file: the model and its weights, the whitening, the support, the names, the divergence, the solver.

    `load` restores the density, with bitwise equal arrays. For a network that is not from flowdensity, the file contains the
    arrays but not the code. If the process ends during the call, there is no incomplete file.

    Args:
        file: path of the file, in an existing folder. An existing file is replaced.
        density: the density, with or without its context.
        report: report of the fit, which `load_report` returns.

    Returns:
        None.

    Raises:
        TypeError: if `file` is not a path, if `density` or `report` has the wrong type, or if a part cannot be written.
        ValueError: if `file` is a folder, or its folder does not exist.

    Examples:
        >>> fd.save("density.flow", density, report)
        >>> density = fd.load("density.flow")
    """
    check_path("save", "file", file, "file", fix="density.flow")
    target = Path(file)
    if target.is_dir() or not target.parent.is_dir():
        inside = target / "density.flow" if target.is_dir() else target
        raise ValueError(
            f"save expected `file` in an existing folder, and not a folder itself; got {os.fspath(file)!r}. "
            f"Fix: os.makedirs({str(inside.parent)!r}, exist_ok=True); file = {str(inside)!r}"
        )
    check_density("save", density)
    if report is not None:
        check_kind("save", "report", report, FitReport, "report = None")
    tensors: Tensors = {}
    header = {
        "format": FORMAT,
        "flowdensity": version("flowdensity"),
        "made with": {"python": platform.python_version()}
        | {name: version(name) for name in ("jax", "equinox", "numpyro", "diffrax")},
        "density": describe(density, "density", tensors),
        "report": describe(report, "report", tensors),
        "probe": describe(_probe(density), "probe", tensors),
    }
    write(file, header, tensors)


def load(file: str | os.PathLike[str], *, network: Any = None, classes: Iterable[type] = ()) -> AbstractLearnedDensity:
    """Load the density that `save` has written.

    Nothing in a file is executed. A damaged or invalid file raises an error. The checksum detects accidental changes, but it is
    not a signature: anyone who can change a file can replace it with a file of another density.

    Args:
        file: path of the file.
        network: for a density with a network that is not from flowdensity: a network of the same form, into which the arrays are
            put. It is an equinox or flax.nnx module, a `jax.tree_util.Partial` or a function, as it was originally passed.
        classes: your own classes (paths, divergences, solvers) of which the density contains objects.

    Returns:
        The density.

    Raises:
        TypeError: if `file` is not a path.
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not the file of a density, is damaged or comes from a newer version; if `network` is missing,
            not needed, or differs from the network that was saved.

    Examples:
        >>> fd.save("density.flow", density)
        >>> density = fd.load("density.flow")
        >>> density.log_prob(data[:5])
    """

    own = by_name("load", classes)

    def build(header: dict[str, Any], tensors: Tensors) -> AbstractLearnedDensity:
        reader = Reader("load", tensors, network, own)
        density = reader.restore(header["density"])
        if not isinstance(density, AbstractLearnedDensity):
            raise TypeError(f"a {type(density).__name__} is not a density")
        if network is not None and not reader.used:
            raise Unreadable(
                f"load expected no `network`, since the file has the whole density; got {type(network).__name__}. "
                "Fix: network = None"
            )
        _check_shapes(density)
        _check_probe(_probe(density), reader.restore(header["probe"]), _tolerance(density))
        return density

    return _opened("load", file, build)


def load_report(file: str | os.PathLike[str]) -> FitReport | None:
    """Load the report of the fit that was saved with a density.

    Args:
        file: path of a file that `save` has written.

    Returns:
        The report; None if there was none.

    Raises:
        TypeError: if `file` is not a path.
        FileNotFoundError: if the file does not exist.
        ValueError: if the file is not the file of a density, is damaged or comes from a newer version.

    Examples:
        >>> fd.save("density.flow", density, report)
        >>> print(fd.load_report("density.flow").summary())
    """

    def build(header: dict[str, Any], tensors: Tensors) -> FitReport | None:
        report = Reader("load_report", tensors).restore(header["report"])
        if not isinstance(report, FitReport | None):
            raise TypeError(f"a {type(report).__name__} is not a report")
        return report

    return _opened("load_report", file, build)


def _opened(caller: str, file: str | os.PathLike[str], build: Callable[[dict[str, Any], Tensors], Made]) -> Made:
    """Open a file and return the result of `build` for its header and arrays."""
    check_path(caller, "file", file, "file", fix="density.flow")
    header, tensors = read(caller, file)
    try:
        number = header["format"]
        if type(number) is not int or number < 1:
            raise ValueError(f"format {number!r} does not exist")
        if number > FORMAT:
            raise Unreadable(
                f"{caller} expected a file of format {FORMAT} or older; got {os.fspath(file)!r} of format {number}, written by "
                f"flowdensity {header['flowdensity']}. Upgrade with `pip install --upgrade flowdensity`, or save it again with "
                f"this version. Fix: {ANEW}"
            )
        return build(header, tensors)
    except Unreadable:
        raise
    # Anyone can write a valid checksum, so every error that the content causes is reported as a fault of the file.
    except Exception as error:
        raise ValueError(
            f"{caller} expected a file as flowdensity wrote it; got {os.fspath(file)!r}, whose content is invalid "
            f"({type(error).__name__}: {_first_line(error)}). Use another copy of it, or save it again. Fix: {ANEW}"
        ) from error


def _check_shapes(density: AbstractLearnedDensity) -> None:
    """Evaluate everything on shapes only, which finds mismatches without allocating memory for the sizes that a file claims."""
    model, divergence, solver = density.model, density.divergence, density.solver

    def everything(event: Array, context: Array) -> tuple[Any, ...]:
        state, _ = model.scaling.whiten(event)
        encoded, _ = model.context_scaling.whiten(context)
        named = [
            scaling.sites.unpack(array)
            for scaling, array in ((model.scaling, event), (model.context_scaling, context))
            if scaling.sites is not None
        ]
        rate = density.state_log_prob(state, encoded) if density.is_amortized else jnp.zeros(())
        return solving.log_prob(model, divergence, event, context, solver), rate, model.scaling.unwhiten(state), named

    event, context = (
        jax.ShapeDtypeStruct(scaling.event_shape, jnp.result_type(float))
        for scaling in (model.scaling, model.context_scaling)
    )
    log_prob, rate, again, _ = jax.eval_shape(everything, event, context)
    shapes = log_prob.shape, rate.shape, again.shape
    if shapes != ((), (), model.event_shape):
        raise ValueError(
            "the log densities of the flow and of the network, and an event, should have the shapes "
            f"{((), (), model.event_shape)}; got {shapes}"
        )


def _probe(density: AbstractLearnedDensity) -> dict[str, np.ndarray]:
    """Compute a few values of the parts of a density, in units of about one."""
    model = density.model
    learned = density.divergence if density.divergence.is_learned else None
    network = density.state_log_prob if density.is_amortized else None
    numbers = np.arange(PROBES)[:, None]
    states = jnp.asarray(1.2 * np.cos(1.0 + 2.3 * numbers + 1.7 * np.arange(model.dim)), float)
    contexts = jnp.asarray(np.sin(2.0 + 1.9 * numbers + 1.3 * np.arange(model.context_scaling.dim)), float)
    # With a GPU's default precision of matrix products, other hardware would differ in the third digit.
    with jax.default_matmul_precision("highest"):
        values = _values((model, learned, network), states, contexts)
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


@eqx.filter_jit
def _values(parts: Any, states: Array, contexts: Array) -> dict[str, Array]:
    model, divergence, network = parts
    first, last = model.times(1)
    times = first + (last - first) * (1.0 + jnp.arange(PROBES)) / (PROBES + 1.0)

    # Evaluate only quantities that need one network pass: sizes stored in a file, such as the number of probes, could make
    # anything else arbitrarily expensive.
    def one(time: Array, state: State, context: Context) -> dict[str, Array]:
        event = model.scaling.unwhiten(state)
        values = {
            "velocity": (last - first) * model.velocity(time, state, context),
            "event": event,
            "log-determinant": model.scaling.whiten(event)[1],
            "state": _there_and_back(model.scaling, state),
        }
        if isinstance(model.context_scaling, Scaling):
            values["context"] = model.context_scaling.unwhiten(context)
            values["whitened context"] = _there_and_back(model.context_scaling, context)
        else:
            entries = jnp.sin(jnp.arange(prod(model.context_shape)) + context[0]).reshape(model.context_shape)
            values["encoded context"] = model.context_scaling.whiten(entries)[0]
        if divergence is not None:
            values["divergence"] = (last - first) * divergence(model, time, state, context)[1]
        if network is not None:
            values["log density"] = network(state, context)
        return values

    return jax.vmap(one)(times, states, contexts)


def _there_and_back(scaling: Scaling, state: State) -> State:
    """Map a state by both maps of a scaling, which cancel, as a tangent, so that the location costs no digits."""
    return jax.jvp(lambda y: scaling.whiten(scaling.unwhiten(y))[0], (state,), (state,))[1]


def _tolerance(density: AbstractLearnedDensity) -> float:
    leaves = [leaf for leaf in jax.tree.leaves(density) if eqx.is_inexact_array(leaf)]
    return max([TOLERANCE, *(4.0 * float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)])


def _check_probe(values: dict[str, np.ndarray], kept: dict[str, np.ndarray], tolerance: float) -> None:
    shapes, before = ({name: value.shape for name, value in each.items()} for each in (values, kept))
    if shapes != before:
        raise ValueError(f"the stored values have the shapes {before}, but those of the loaded density have {shapes}")
    for name, value in values.items():
        finite = np.isfinite(kept[name])
        away = np.linalg.norm((value - kept[name])[finite])
        size = np.linalg.norm(kept[name][finite]) + 0.01 * np.sqrt(value.size)
        if (finite != np.isfinite(value)).any() or not away <= tolerance * size:
            raise Unreadable(
                f"load expected the {name} that the density had when it was saved; that of the loaded density differs by "
                f"{away:.2g}, where the saved values have the size {size:.2g}. A network or class with different code gives a "
                "different density. Fix: network = density.model.network"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
