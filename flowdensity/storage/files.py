"""Densities in files: `save` and `load`.

A file is data: arrays, and a description of the objects that they belong to. Only registered classes, and those that the user
hands over, are made of it; it holds no code. It also has a few values of the density, which the loaded one must reproduce.
"""

import os
import platform
from collections.abc import Callable, Iterable
from importlib.metadata import version
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
"""Format of the files that are written."""
PROBES = 4
"""States at which a density's own values are kept beside it."""
TOLERANCE = 1e-3
"""Relative difference of those values that other hardware may make, and another network does not."""

Made = TypeVar("Made")


def save(file: str | os.PathLike[str], density: AbstractLearnedDensity, report: FitReport | None = None) -> None:
    """Write a density to one file: the model and its weights, the whitening, the support, the names, the divergence, the solver.

    `load` gives it back, and arrays bit by bit. Of a network that is not flowdensity's the file has the arrays and not the code.
    The file is there whole or, if the process ends on the way, not at all.

    Args:
        file: where to; its folder exists. What was there is replaced.
        density: with or without its context.
        report: of the fit, which `load_report` gives back.

    Returns:
        None.

    Raises:
        TypeError: if `file` is no path, or `density` or `report` of another type or made of something that cannot be written.
        ValueError: if `file` is a folder, or in one that does not exist.
    """
    check_path("save", "file", file, "file", fix="density.flow")
    target = Path(file)
    if target.is_dir() or not target.parent.is_dir():
        inside = target / "density.flow" if target.is_dir() else target
        raise ValueError(
            f"save expected `file` in a folder that exists, and no folder itself; got {os.fspath(file)!r}. "
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
    """The density that `save` has written.

    Nothing of a file is executed; one that is damaged or made up is an error. The checksum finds accidents. It is no signature:
    whoever can change a file can write one of another density.

    Args:
        file: what was written.
        network: for a density with a network that is not flowdensity's: one like it, into which the arrays are put. It is
            an equinox or flax.nnx module, `jax.tree_util.Partial` or function, as it was first handed over.
        classes: your own classes (paths, divergences, solvers) of which the density has objects.

    Returns:
        The density.

    Raises:
        TypeError: if `file` is no path.
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of a density, or damaged, or one of a newer version; if `network` is missing, not wanted, or
            another than that which was saved.
    """

    own = by_name("load", classes)

    def build(header: dict[str, Any], tensors: Tensors) -> AbstractLearnedDensity:
        reader = Reader("load", tensors, network, own)
        density = reader.restore(header["density"])
        if not isinstance(density, AbstractLearnedDensity):
            raise TypeError(f"a {type(density).__name__} is no density")
        if network is not None and not reader.used:
            raise Unreadable(
                f"load expected no `network`, since the file has all of its density; got {type(network).__name__}. "
                "Fix: network = None"
            )
        _check_shapes(density)
        _check_probe(_probe(density), reader.restore(header["probe"]), _tolerance(density))
        return density

    return _opened("load", file, build)


def load_report(file: str | os.PathLike[str]) -> FitReport | None:
    """The report of the fit that was saved with a density.

    Args:
        file: what `save` has written.

    Returns:
        The report; None if there was none.

    Raises:
        TypeError: if `file` is no path.
        FileNotFoundError: if there is no such file.
        ValueError: if it is no file of a density, or damaged, or one of a newer version.
    """

    def build(header: dict[str, Any], tensors: Tensors) -> FitReport | None:
        report = Reader("load_report", tensors).restore(header["report"])
        if not isinstance(report, FitReport | None):
            raise TypeError(f"a {type(report).__name__} is no report")
        return report

    return _opened("load_report", file, build)


def _opened(caller: str, file: str | os.PathLike[str], build: Callable[[dict[str, Any], Tensors], Made]) -> Made:
    """What `build` makes of a file's header and arrays."""
    check_path(caller, "file", file, "file", fix="density.flow")
    header, tensors = read(caller, file)
    try:
        number = header["format"]
        if type(number) is not int or number < 1:
            raise ValueError(f"there is no format {number!r}")
        if number > FORMAT:
            raise Unreadable(
                f"{caller} expected a file of format {FORMAT} or older; got {os.fspath(file)!r} of format {number}, written by "
                f"flowdensity {header['flowdensity']}. Upgrade with `pip install --upgrade flowdensity`, or write it anew. "
                f"Fix: {ANEW}"
            )
        return build(header, tensors)
    except Unreadable:
        raise
    # Its checksum is right, but anyone can make one: whatever the content brings about, it is the file that is at fault.
    except Exception as error:
        raise ValueError(
            f"{caller} expected a file as flowdensity wrote it; got {os.fspath(file)!r}, whose content makes none of its "
            f"densities ({type(error).__name__}: {_first_line(error)}). Take another copy of it, or write it anew. Fix: {ANEW}"
        ) from error


def _check_shapes(density: AbstractLearnedDensity) -> None:
    """Evaluate everything on shapes alone: what does not fit is found, whatever sizes a file claims, with nothing allocated."""
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
        raise ValueError(f"log densities and events have the shapes {shapes}")


def _probe(density: AbstractLearnedDensity) -> dict[str, np.ndarray]:
    """A few values of what the density is made of, in units of about one."""
    model = density.model
    learned = density.divergence if density.divergence.is_learned else None
    network = density.state_log_prob if density.is_amortized else None
    numbers = np.arange(PROBES)[:, None]
    states = jnp.asarray(1.2 * np.cos(1.0 + 2.3 * numbers + 1.7 * np.arange(model.dim)), float)
    contexts = jnp.asarray(np.sin(2.0 + 1.9 * numbers + 1.3 * np.arange(model.context_scaling.dim)), float)
    # At a GPU's own precision for products, other hardware would differ in the third digit.
    with jax.default_matmul_precision("highest"):
        values = _values((model, learned, network), states, contexts)
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


@eqx.filter_jit
def _values(parts: Any, states: Array, contexts: Array) -> dict[str, Array]:
    model, divergence, network = parts
    first, last = model.times(1)
    times = first + (last - first) * (1.0 + jnp.arange(PROBES)) / (PROBES + 1.0)

    # Only what costs one pass of the networks: what else a file asks for, such as a number of probes, may be without bound.
    def one(time: Array, state: State, context: Context) -> dict[str, Array]:
        event = model.scaling.unwhiten(state)
        values = {
            "velocity": (last - first) * model.velocity(time, state, context),
            "event": event,
            "log-determinant": model.scaling.whiten(event)[1],
            "state": _there_and_back(model.scaling, state),
            "context": model.context_scaling.unwhiten(context),
            "whitened context": _there_and_back(model.context_scaling, context),
        }
        if divergence is not None:
            values["divergence"] = (last - first) * divergence(model, time, state, context)[1]
        if network is not None:
            values["log density"] = network(state, context)
        return values

    return jax.vmap(one)(times, states, contexts)


def _there_and_back(scaling: Scaling, state: State) -> State:
    """A state by both maps of a scaling, which undo each other: as a tangent, whose digits no location takes away."""
    return jax.jvp(lambda y: scaling.whiten(scaling.unwhiten(y))[0], (state,), (state,))[1]


def _tolerance(density: AbstractLearnedDensity) -> float:
    leaves = [leaf for leaf in jax.tree.leaves(density) if eqx.is_inexact_array(leaf)]
    return max([TOLERANCE, *(4.0 * float(jnp.finfo(leaf.dtype).eps) for leaf in leaves)])


def _check_probe(values: dict[str, np.ndarray], kept: dict[str, np.ndarray], tolerance: float) -> None:
    shapes, before = ({name: value.shape for name, value in each.items()} for each in (values, kept))
    if shapes != before:
        raise ValueError(f"it has kept values of the shapes {before}, and what is made of it has {shapes}")
    for name, value in values.items():
        finite = np.isfinite(kept[name])
        away = np.linalg.norm((value - kept[name])[finite])
        size = np.linalg.norm(kept[name][finite]) + 0.01 * np.sqrt(value.size)
        if (finite != np.isfinite(value)).any() or not away <= tolerance * size:
            raise Unreadable(
                f"load expected the {name} that the density had when it was saved; what is made of the file has another, by "
                f"{away:.2g} on {size:.2g}. Other code than that which was saved makes another density. "
                "Fix: network = density.model.network"
            )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
