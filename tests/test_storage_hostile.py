"""Files that are damaged or made up: whatever is in one, `load` raises its own error or gives what was saved."""

import json
from pathlib import Path
from typing import Any

import jax.random as jr
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from references import random_flow

import flowdensity as fd
from flowdensity import _container
from flowdensity._container import read, write
from flowdensity.storage.description import describe
from flowdensity.storage.files import FORMAT, load, load_report, save

STRANGE = r"^load expected a file (as flowdensity wrote it|that flowdensity has written); got .*Fix: "
REPORT = fd.results.FitReport({}, {"flow": 1.0}, steps=fd.results.StepErrors((4,), (0.01,), 0.02))
EVENTS = np.float32(np.random.default_rng(0).normal(size=(3, 2)))


def density() -> fd.FlowDensity:
    divergence = fd.HutchinsonDivergence(jr.key(0), 2)
    return fd.FlowDensity(random_flow(jr.key(0), 2, width=4), divergence=divergence, solver=fd.FixedStep(2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("storage") / "density.flow"
    save(file, density(), REPORT)
    return file


def node(tree: Any, *path: str | int) -> Any:
    """What lies in a tree of fields and items."""
    for step in path:
        tree = tree["tuple"][step] if isinstance(step, int) else tree["fields"][step]
    return tree


def forged(header: dict, tensors: dict, path: tuple, value: Any) -> None:
    *before, last = path
    node(header["density"], *before)["fields"][last] = value


def nested(depth: int, inner: str = "1") -> str:
    return '{"tuple": [' * depth + inner + "]}" * depth


MODEL = ("model",)
CHAIN = ("model", "scaling", "chain", "transforms")
NETWORK = ("model", "network")
FORGERIES = {
    "a type that is not listed": (("solver",), {"type": "os.system", "fields": {"command": "true"}}),
    "a class by its module": (("solver",), {"type": "flowdensity.solving.FixedStep", "fields": {}}),
    "a type where another belongs": (("model", "path"), {"type": "ExactDivergence", "fields": {}}),
    "no model": (MODEL, {"type": "CondOT", "fields": {}}),
    "a number for a text": ((*NETWORK, "activation"), 3),
    "a text that is none of the choices": ((*NETWORK, "activation"), "relu6"),
    "an attribute for a choice": ((*NETWORK, "activation"), "__class__"),
    "huge frequencies": ((*NETWORK, "frequencies"), 10**12),
    "huger frequencies": ((*NETWORK, "frequencies"), 10**40),
    "negative frequencies": ((*NETWORK, "frequencies"), -1),
    "true for a number": (("solver", "steps"), True),
    "no steps": (("solver", "steps"), 0),
    "infinitely many steps": (("solver", "steps"), {"float": "inf"}),
    "a huge event": ((*CHAIN, 0, "event_shape"), {"tuple": [10**6, 10**6, 10**6]}),
    "an event of another size": ((*CHAIN, 0, "event_shape"), {"tuple": [3]}),
    "a list for a tuple": ((*CHAIN, 0, "event_shape"), [2]),
    "names that do not fit": (
        ("model", "scaling", "sites"),
        {"type": "Sites", "fields": {"names": {"tuple": ["a"]}, "shapes": {"tuple": [{"tuple": [10**12]}]}}},
    ),
    "another support": ((*CHAIN, 0, "support"), {"type": "constraints.simplex", "fields": {}}),
    "no transforms": (CHAIN, {"tuple": []}),
    "no chain": (("model", "scaling", "chain"), {"tuple": []}),
    "a missing array": (("model", "reach"), {"array": "nothing", "kind": "jax"}),
    "a path": (("model", "reach"), {"array": "../../../../etc/passwd", "kind": "jax"}),
    "an unknown kind of array": (("model", "reach"), {"array": "density/model/reach", "kind": "object"}),
    "an unknown dtype": (("model", "reach"), {"array": "density/model/reach", "kind": "jax", "dtype": "object"}),
    "an array of another shape": (
        ("model", "reach"),
        {"array": "density/model/scaling/chain/transforms/1/scale", "kind": "jax"},
    ),
    "an array for a layer": ((*NETWORK, "inward"), {"array": "density/model/reach", "kind": "jax"}),
    "an unknown generator": (("divergence", "key"), {"array": "density/divergence/key", "kind": "md5"}),
    "an unknown form": (("solver",), {"call": "os.system"}),
    "too much in a form": (("model", "path"), {"type": "CondOT", "fields": {}, "more": 1}),
    "a context that does not belong": (("context",), {"array": "density/model/reach", "kind": "jax"}),
    "a network that is another's": (NETWORK, 3),
    "deep": ((*CHAIN, 0, "event_shape"), json.loads(nested(300))),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forgery_is_an_error(saved, tmp_path, name):
    """With the checksum that belongs to it."""
    header, tensors = read("load", saved)
    forged(header, tensors, *FORGERIES[name])
    write(tmp_path / "forged.flow", header, tensors)
    with pytest.raises(ValueError, match=STRANGE):
        load(tmp_path / "forged.flow")
    assert load_report(tmp_path / "forged.flow") == REPORT


def test_fields_are_neither_missing_nor_too_many(saved, tmp_path):
    for change in (lambda fields: fields.pop("reach"), lambda fields: fields.update(more=1)):
        header, tensors = read("load", saved)
        change(node(header["density"], "model")["fields"])
        write(tmp_path / "forged.flow", header, tensors)
        with pytest.raises(ValueError, match=STRANGE):
            load(tmp_path / "forged.flow")


def test_arrays_of_other_sizes_are_an_error(saved, tmp_path):
    """Of every array another shape, another type, and none."""
    header, tensors = read("load", saved)
    names = [name for name in tensors if name.startswith("density/")]
    assert len(names) > 15
    for name in names:
        array = tensors[name]
        for other in (
            np.zeros((*array.shape, 2), array.dtype),
            np.zeros((3, 5, 1), bool),
            np.zeros(0, array.dtype),
            None,
        ):
            if other is not None and (other.shape, other.dtype) == (array.shape, array.dtype):
                continue
            changed = {key: value for key, value in (tensors | {name: other}).items() if value is not None}
            write(tmp_path / "forged.flow", header, changed)
            with pytest.raises(ValueError, match=r"^load expected .*Fix: "):
                load(tmp_path / "forged.flow")


def test_other_weights_are_an_error(saved, tmp_path):
    """They would be another density: the file has kept a few values of its own."""
    header, tensors = read("load", saved)
    name = "density/model/network/inward/weight"
    write(tmp_path / "forged.flow", header, tensors | {name: tensors[name] + np.float32(0.05)})
    with pytest.raises(ValueError, match=r"^load expected the velocity that the density had when it was saved.*Fix: "):
        load(tmp_path / "forged.flow")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("density/model/scaling/chain/transforms/1/location", "event"),
        ("density/model/scaling/chain/transforms/1/log_scale", "log-determinant"),
        ("density/model/scaling/chain/transforms/1/whitener", "state"),
        ("density/model/reach", "velocity"),
    ],
)
def test_arrays_that_do_not_belong_together_are_an_error(saved, tmp_path, name, what):
    header, tensors = read("load", saved)
    write(tmp_path / "forged.flow", header, tensors | {name: 0.5 * tensors[name] + np.float32(0.02)})
    with pytest.raises(ValueError, match=rf"^load expected the {what} that the density had.*Fix: "):
        load(tmp_path / "forged.flow")


def test_a_newer_format_says_so(saved, tmp_path):
    header, tensors = read("load", saved)
    write(
        tmp_path / "newer.flow",
        header | {"format": FORMAT + 1, "flowdensity": "9.9", "density": "of a new kind"},
        tensors,
    )
    for function in (load, load_report):
        with pytest.raises(
            ValueError,
            match=rf"of format {FORMAT} or older.* of format {FORMAT + 1}, written by flowdensity 9\.9.*upgrade",
        ):
            function(tmp_path / "newer.flow")
    for strange in (0, -1, True, 1.0, "1", None, [1]):
        write(tmp_path / "strange.flow", header | {"format": strange}, tensors)
        with pytest.raises(ValueError, match=STRANGE):
            load(tmp_path / "strange.flow")


@pytest.mark.parametrize(
    "fields",
    [
        {"outward": None},
        {"outward": {"type": "Linear", "fields": {}}},
        {"dim": "two"},
        {"experts": 3, "more": 1},
    ],
    ids=str,
)
def test_a_forged_network_is_an_error(saved, tmp_path, fields):
    header, tensors = read("load", saved)
    network = node(header["density"], "model", "network")
    network["fields"] |= fields
    write(tmp_path / "forged.flow", header, tensors)
    with pytest.raises(ValueError, match=STRANGE):
        load(tmp_path / "forged.flow")


@pytest.mark.parametrize("missing", ["format", "density", "probe"])
def test_a_header_without_its_parts_is_an_error(saved, tmp_path, missing):
    header, tensors = read("load", saved)
    del header[missing]
    write(tmp_path / "forged.flow", header, tensors)
    with pytest.raises(ValueError, match=STRANGE):
        load(tmp_path / "forged.flow")


def test_a_forged_report_is_an_error(saved, tmp_path):
    header, tensors = read("load", saved)
    # Of a report nothing is evaluated: only its annotations say what it is made of.
    mistyped = {"type": "FitReport", "fields": header["report"]["fields"] | {"seconds": {"dict": {"flow": "1.0"}}}}
    for report in (3, header["density"], {"type": "FitReport", "fields": {}}, mistyped, json.loads(nested(300))):
        write(tmp_path / "forged.flow", header | {"report": report}, tensors)
        with pytest.raises(ValueError, match=r"^load_report expected a file as flowdensity wrote it.*Fix: "):
            load_report(tmp_path / "forged.flow")


@pytest.mark.parametrize("depth", [2000, 200_000])
def test_depth_without_end_is_an_error(saved, tmp_path, depth):
    header, tensors = read("load", saved)
    text = json.dumps(header | {"density": "DEEP"}).replace('"DEEP"', nested(depth))
    content = {"header": text, "sha256": _container._checksum(text, tensors)}
    (tmp_path / "deep.flow").write_bytes(safetensors.numpy.save(tensors, content))
    with pytest.raises(ValueError, match=STRANGE):
        load(tmp_path / "deep.flow")


def test_what_a_file_claims_is_checked_before_it_is_allocated(tmp_path):
    for shape, ends in (([10**12], [0, 4 * 10**12]), ([10**6, 10**6], [0, 8]), ([2**63], [0, 8]), ([2], [-8, 0])):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": ends}}).encode()
        (tmp_path / "huge.flow").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        with pytest.raises(ValueError, match=STRANGE):
            load(tmp_path / "huge.flow")
    for content in (b"", b"\xff" * 8, b"\xff" * 100, b"{}", (10**9).to_bytes(8, "little") + b"{}"):
        (tmp_path / "huge.flow").write_bytes(content)
        with pytest.raises(ValueError, match=STRANGE):
            load(tmp_path / "huge.flow")


def test_another_file_of_arrays_is_none_of_a_density(tmp_path):
    write(tmp_path / "other.flow", {"step": 3}, {"weights": np.ones(3)})
    for function in (load, load_report):
        with pytest.raises(ValueError, match=r"expected a file as flowdensity wrote it.*Fix: "):
            function(tmp_path / "other.flow")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.flow")


def test_a_convolution_of_another_kind_is_no_way_to_spend_memory(tmp_path):
    """With shapes that fit at the end, a stride or a margin could make something huge in between."""
    network = fd.networks.UNet(jr.key(0), (2, 4, 1), width=2, scales=2, frequencies=2)
    flow = random_flow(jr.key(0), 8)
    model = fd.models.GaussianFlow(network, flow.path, flow.scaling, flow.context_scaling, flow.reach)
    save(tmp_path / "image.flow", fd.FlowDensity(model, divergence=fd.HutchinsonDivergence(jr.key(0))))
    for change in ({"padding": {"tuple": [10**6, 10**6]}}, {"stride": 10**6}, {"stride": -1}):
        header, tensors = read("load", tmp_path / "image.flow")
        node(header["density"], "model", "network", "inward")["fields"].update(change)
        write(tmp_path / "forged.flow", header, tensors)
        with pytest.raises(ValueError, match=STRANGE):
            load(tmp_path / "forged.flow")


def test_a_network_is_not_put_elsewhere(saved, tmp_path):
    """What is handed over is called only where a network belongs."""
    header, tensors = read("load", saved)
    calls = []
    for path in (("model", "path"), ("divergence",), ("solver",), ("model", "scaling"), ("model", "network", "inward")):
        changed = json.loads(json.dumps(header))
        forged(changed, tensors, path, {"own": "function", "arrays": []})
        write(tmp_path / "forged.flow", changed, tensors)
        with pytest.raises(ValueError, match=STRANGE):
            load(tmp_path / "forged.flow", network=lambda *args: calls.append(args))
    assert not calls


@pytest.mark.slow
def test_ends_and_bits_count(saved, tmp_path):
    """A bit of one in seven bytes of the description, of one in 97 of the arrays, and as many lengths."""
    content = saved.read_bytes()
    expected = np.asarray(density().log_prob(EVENTS))
    start = 8 + int.from_bytes(content[:8], "little")
    mutants = [content[:end] for end in range(0, len(content), 97)] + [content + b"\0"]
    for place in [*range(0, start, 7), *range(start, len(content), 97)]:
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        mutants.append(bytes(changed))
    outcomes = [outcome(tmp_path / "mutant.flow", mutant, expected) for mutant in mutants]
    assert len(outcomes) > 300
    assert outcomes.count("the same") < 5  # padding, and what safetensors does not look at


def attempt(file: Path) -> Any:
    """The density in a file, or None where the package's own error comes."""
    try:
        return load(file)
    except ValueError as error:
        message = str(error)
    assert message.startswith("load expected"), message
    return None


def outcome(file: Path, content: bytes, expected: np.ndarray) -> str:
    """What comes of a file's content: the same density or the package's error, and nothing else."""
    file.write_bytes(content)
    again = attempt(file)
    if again is None:
        return "an error"
    np.testing.assert_array_equal(again.log_prob(EVENTS), expected)
    return "the same"


MUTATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("cut"), st.floats(0, 1)),
        st.tuples(st.just("drop"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=16)),
        st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=8)),
        st.tuples(st.just("flip"), st.floats(0, 1), st.integers(0, 7)),
        st.tuples(st.just("length"), st.integers(0, 2**64 - 1)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 256)),
        st.tuples(
            st.just("replace"),
            st.sampled_from([b"F32", b"[4]", b"[2]", b"16", b"0", b"null", b"tuple", b"Flow", b"array", b"sha256"]),
            st.sampled_from(
                [b"F64", b"[0]", b"[9999999999]", b"-1", b"1e9", b"{}", b"[[[[", b"__class__", b"\\u0000", b'"']
            ),
        ),
    ),
    min_size=1,
    max_size=4,
)


def mutated(content: bytes, mutations: list[tuple]) -> bytes:
    for kind, *details in mutations:
        place = int(details[0] * len(content)) if isinstance(details[0], float) else 0
        match kind:
            case "cut":
                content = content[:place]
            case "drop":
                content = content[:place] + content[place + details[1] :]
            case "insert":
                content = content[:place] + details[1] + content[place:]
            case "set":
                content = content[:place] + details[1] + content[place + len(details[1]) :]
            case "flip" if place < len(content):
                content = content[:place] + bytes([content[place] ^ 1 << details[1]]) + content[place + 1 :]
            case "length":
                content = details[0].to_bytes(8, "little") + content[8:]
            case "repeat":
                content = content[: place + details[1]] + content[place:]
            case "replace":
                content = content.replace(*details)
    return content


@pytest.mark.slow
def test_mutants_of_the_bytes(saved, tmp_path_factory):
    content = saved.read_bytes()
    file = tmp_path_factory.mktemp("mutants") / "mutant.flow"
    expected = np.asarray(density().log_prob(EVENTS))
    outcomes = []

    @settings(
        max_examples=1_000, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(MUTATIONS)
    def run(mutations):
        outcomes.append(outcome(file, mutated(content, mutations), expected))

    run()
    assert len(outcomes) >= 1_000
    assert outcomes.count("an error") > 900


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container in a JSON tree with every key of it."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    return [pair for key in keys for pair in [(tree, key), *places(tree[key])]]


VALUES = st.one_of(
    st.sampled_from([None, True, 0, -1, 2, 10**12, 10**100, 0.5, -1e300, "", "../x", "real", [], {}, {"tuple": []}]),
    st.sampled_from([{"dict": {"a": 1}}, {"float": "nan"}, {"own": "function", "arrays": []}, json.loads(nested(40))]),
    st.sampled_from(["VelocityField", "UNet", "AmortizedDensity", "constraints.joint", "Adaptive", "diffrax.Tsit5"]),
    st.sampled_from(
        ["constraints.positive", "Trigonometric", "gelu", "rbg", "numpy", "scalar", "bfloat16", "gaussian"]
    ),
)


@pytest.mark.slow
def test_mutants_of_the_description(saved, tmp_path_factory):
    """With the checksum made right: either an error, or the density that the description says and nothing else."""
    content, tensors = read("load", saved)
    file = tmp_path_factory.mktemp("mutants") / "mutant.flow"
    count = len(places(content))
    outcomes = []

    @settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.integers(0, count - 1), st.sampled_from(["set", "copy", "delete", "add"]), VALUES, st.integers(0, count - 1)
    )
    @example(0, "set", 1, 0)
    def run(which, what, value, other):
        header = json.loads(json.dumps(content))
        (tree, key), (source, source_key) = places(header)[which], places(header)[other]
        match what:
            case "set":
                tree[key] = value
            case "copy":
                tree[key] = json.loads(json.dumps(source[source_key]))
            case "delete":
                del tree[key]
            case "add" if isinstance(tree, dict):
                tree["more"] = value
            case "add":
                tree.append(value)
        write(file, header, tensors)
        again = attempt(file)
        outcomes.append("an error" if again is None else "what it says")
        assert again is None or describe(again, "density", {}) == header["density"]

    run()
    assert outcomes.count("an error") > 150
    assert outcomes.count("what it says") > 15  # of the report, for one, `load` reads nothing
