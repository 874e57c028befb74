"""Files that are written and read."""

import json
from pathlib import Path
from typing import Any

import equinox

from flowdensity import _container
from flowdensity.training.checkpoints import open_checkpoint

from .case import Groups, cases
from .material import DATA, FIELD, KEY, PLAIN, fd


class Halved(fd.paths.AbstractPath):
    """A path of the user's own, whose class a file does not hold."""

    def coefficients(self, t: Any) -> Any:
        return t, 1.0 - t


OWN_PATH = fd.FlowDensity(equinox.tree_at(lambda model: model.path, PLAIN.model, Halved()))


FILES: Groups = [
    cases(
        "fd.save(file, density)",
        {"file": "new.flow", "density": PLAIN, "data": DATA},
        {
            "a model": {"density": PLAIN.model},
            "an expanded density": {"density": PLAIN.expand([3])},
            "a string for `report`": {"report": "report"},
            "a number for `file`": {"file": 3.5},
            "a folder that is not there": {"file": "nowhere/density.flow"},
            "a folder for `file`": {"file": "other-fit"},
        },
    ),
    cases(
        "fd.load(file)",
        {"density": PLAIN, "network": FIELD.network, "Halved": Halved},
        {
            "a text file": {"file": "notes.txt"},
            "a number for `file`": {"file": 3.5},
            "a file cut short": {"file": "half.flow"},
            "a file with one byte changed": {"file": "flipped.flow"},
            "no network, for a density with one of the user's own": {"file": "own.flow"},
            "a path of the user's own": {"file": "own-path.flow"},
            "a file of a newer version": {"file": "newer.flow"},
            "a file that says something else": {"file": "forged.flow"},
            "a file whose solver has a billion steps": {"file": "endless.flow"},
        },
    ),
    cases(
        "fd.load(file, network=network)",
        {"density": fd.FlowDensity(FIELD)},
        {
            "a network of another shape": {"file": "own.flow", "network": fd.networks.ResidualMLP(KEY, 2, width=8)},
            "a network that the file does not need": {"file": "density.flow", "network": lambda t, x, c: x},
        },
    ),
    cases(
        "fd.load_report(file)",
        {"density": PLAIN},
        {"a text file": {"file": "notes.txt"}, "a file of a newer version": {"file": "newer.flow"}},
    ),
]


def write_files() -> None:
    """Write the files that the cases read, in the current folder."""
    Path("notes.txt").write_text("no density\n")
    Path("table.csv").write_text("a,b\n" + "\n".join(f"{x},{y}" for x, y in DATA))
    fd.save("density.flow", PLAIN)
    content = Path("density.flow").read_bytes()
    Path("half.flow").write_bytes(content[: len(content) // 2])
    Path("flipped.flow").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    header, tensors = _container.read("load", "density.flow")
    _container.write("newer.flow", header | {"format": header["format"] + 1}, tensors)
    _container.write("forged.flow", header | {"density": {"type": "Popen", "fields": {}}}, tensors)
    fd.save("endless.flow", PLAIN.with_solver(fd.FixedStep(steps=123_456)))
    endless, weights = _container.read("load", "endless.flow")
    _container.write("endless.flow", json.loads(json.dumps(endless).replace("123456", "1000000000")), weights)
    fd.save("own.flow", fd.FlowDensity(FIELD))
    fd.save("own-path.flow", OWN_PATH)
    open_checkpoint("fit_flow", "other-fit", KEY)
