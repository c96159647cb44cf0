"""INT8 has to earn its place: as right as fp32, and faster, or fp32 stays alone and the reason is told."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import ArrayLike
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantType
from PIL import Image

from bundle.contract import CONTRACT_KEY, IMAGES, LOGITS, SIMILARITY, contract_to_json
from bundle.errors import BundleError
from bundle.repository import load_bundle
from bundle.runtime import open_model
from trainer import int8_search, runs, train
from trainer.agreement import compare
from trainer.config import FitConfig
from trainer.data import Picture, load_labelled
from trainer.errors import ConfigError, ParityError, QuantizationError
from trainer.export import export
from trainer.int8_search import Evidence, Found, search, stratified
from trainer.latency import FEWEST_ROUNDS, ROUNDS, interleaved_medians_ms
from trainer.quantize import Recipe, number_types

from .colour_graph import CONTRACT, LABELS, NORMAL, SIDE, write_colour_graph
from .pictures import make_folder

OUTLIER = 1e5  # in one channel: with it in range, eight bits leave nothing of the other three
LAYERS = 4


def graph(path: Path, *, outliers: tuple[int, ...] = ()) -> Path:
    """Write uint8 NHWC -> normalise -> four 1 x 1 convolutions with ReLU -> mean -> logits of the mean colour.

    Channels 0 to 2 hand red, green and blue on; channel 3 is a constant, OUTLIER behind the layers in `outliers`.
    """
    constants: dict[str, ArrayLike] = {}
    layers, entry = [], NORMAL
    for layer in range(LAYERS):
        weight = np.zeros((4, 4 if layer else 3, 1, 1), np.float32)
        weight[:3, :3, 0, 0] = np.eye(3)
        constants[f"w{layer}"] = weight
        constants[f"b{layer}"] = np.float32([0 if layer else 1] * 3 + [OUTLIER if layer in outliers else 0])
        layers += [
            helper.make_node("Conv", [entry, f"w{layer}", f"b{layer}"], [f"y{layer}"], f"conv{layer}"),
            helper.make_node("Relu", [f"y{layer}"], [f"x{layer + 1}"], f"relu{layer}"),
        ]
        entry = f"x{layer + 1}"
    return write_colour_graph(path, CONTRACT, layers, constants, mean=127.5, channels=4)


def times(*milliseconds: float) -> Callable[[Sequence[Callable[[], object]]], list[float]]:
    """A clock that says: fp32 takes the first, every candidate the second number of ms."""
    return lambda measured: [milliseconds[0], *[milliseconds[1]] * (len(measured) - 1)]


TWICE_AS_FAST = times(2.0, 1.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Picture, ...]:
    return load_labelled(make_folder(tmp_path_factory.mktemp("data"), count=16), LABELS, max_bad=0)


@pytest.fixture
def look(pictures: tuple[Picture, ...], tmp_path: Path) -> Callable[..., Found]:
    """Search among the graph's candidates; the file that may be kept is tmp_path/int8.onnx."""

    def run(
        *, measure=TWICE_AS_FAST, confirmation: tuple[Picture, ...] | None = None, outliers: tuple[int, ...] = ()
    ) -> Found:
        half = len(pictures) // 2
        evidence = Evidence(
            calibration=pictures[::2], selection=pictures[1::2], confirmation=confirmation or pictures[:half]
        )
        source = graph(tmp_path / "fp32.onnx", outliers=outliers)
        return search(source, tmp_path / "int8.onnx", contract=CONTRACT, evidence=evidence, measure=measure)

    return run


def test_int8_is_kept_where_it_is_as_right_and_faster(look: Callable[..., Found], tmp_path: Path) -> None:
    """All eight recipes stand in the table, one of them is kept, and fp32 is the first line."""
    found = look()
    first, *others = found.candidates
    assert found.is_kept
    assert "2.00 times as fast as fp32" in found.reason
    assert (first.name, first.verdict, first.agreement, first.accuracy.value) == ("fp32", "reference", 1.0, 1.0)
    assert len(others) == 8
    assert sum("first block float" in row.name for row in others) == 2
    assert [row.verdict for row in others].count("kept") == 1
    assert {row.latency_ms for row in others} == {1.0}
    assert (tmp_path / "int8.onnx").stat().st_size in {row.size_bytes for row in others if row.verdict == "kept"}


def test_kept_file_is_a_whole_variant(look: Callable[..., Found], tmp_path: Path) -> None:
    """Integers and the contract inside, opset 18, no foreign operators; nearly the same logits come out."""
    look()
    model = onnx.load(tmp_path / "int8.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert {entry.key: entry.value for entry in model.metadata_props} == {CONTRACT_KEY: contract_to_json(CONTRACT)}
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    assert sum(len(tensor.dims) >= 2 for tensor in weights.values()) == LAYERS + 1
    makers = {output: node for node in model.graph.node for output in node.output}
    assert makers[LOGITS.name].op_type == "Gemm"  # not rounded to 256 levels
    rounded = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert not rounded & {"floats", "centred"}  # normalisation stays float
    images = np.random.default_rng(0).integers(0, 256, (5, SIDE, SIDE, 3), np.uint8)
    here, there = (
        ort.InferenceSession(tmp_path / name).run(None, {IMAGES.name: images})[0] for name in ("int8.onnx", "fp32.onnx")
    )
    np.testing.assert_allclose(here, there, atol=0.3)
    assert "bank" in {name for node in model.graph.node for name in node.input}  # as it was: float


def test_slow_int8_is_refused(look: Callable[..., Found], tmp_path: Path) -> None:
    """As fast as fp32 is not faster."""
    found = look(measure=times(1.0, 0.95))
    assert not found.is_kept
    assert "1.05 times fp32's speed at batch 1, wanted 1.1" in found.reason
    assert not (tmp_path / "int8.onnx").exists()
    assert len(found.candidates) == 9


def test_int8_that_errs_is_refused(look: Callable[..., Found], tmp_path: Path) -> None:
    """An outlier behind every layer: no recipe, and no two blocks kept float, bring the colours back."""
    found = look(outliers=(0, 1, 2, 3))
    assert not found.is_kept
    assert "loses 6" in found.reason
    assert not (tmp_path / "int8.onnx").exists()
    assert all(row.accuracy.value < 0.7 for row in found.candidates[1:])


def test_sensitive_blocks_are_kept_float(look: Callable[..., Found], tmp_path: Path) -> None:
    """An outlier between two layers: every recipe fails, with those two blocks in float it is good."""
    found = look(outliers=(1,))
    assert found.is_kept, found.reason
    assert "2 blocks float" in found.reason
    made = {node.name: node for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    assert made["conv2"].input[0] == made["relu1"].output[0]  # no rounding between them


def test_choice_must_hold_on_the_pictures_of_the_proof(look: Callable[..., Found], tmp_path: Path) -> None:
    """Red and green a quarter of a grey level apart, which eight bits cannot tell: validation alone is not enough."""
    (tmp_path / "red").mkdir()
    for number in range(20):
        pixels = np.full((36, 36, 3), (100 + number, 100 + number, 50), np.uint8)
        pixels[:, ::4, 0] += 1
        Image.fromarray(pixels).save(tmp_path / "red" / f"{number}.png")
    found = look(confirmation=load_labelled(tmp_path, LABELS, max_bad=0))
    assert not found.is_kept
    assert "on the pictures of the proof: loses" in found.reason
    assert found.candidates[0].verdict == "reference"
    assert not (tmp_path / "int8.onnx").exists()
    assert "on the pictures of the proof" in "".join(row.verdict for row in found.candidates)


def answers(*labels: int, class_count: int = 2) -> np.ndarray:
    return np.eye(class_count)[list(labels)]


@pytest.mark.parametrize(
    ("count", "lost", "objection"),
    [
        (199, 1, "loses 0.50 points, 1 of 199"),
        (200, 1, ""),
        (200, 2, "loses 1.00 points, 2 of 200"),
        (400, 2, ""),
    ],
)
def test_half_a_point_may_be_lost(count: int, lost: int, objection: str) -> None:
    """Below 200 pictures that is less than one picture: then none that the model was sure of."""
    truth = np.arange(count) % 2
    found = truth.copy()
    found[:lost] = 1 - found[:lost]
    likeness = compare(answers(*truth), answers(*found), truth, labels=("a", "b"))
    assert likeness.objection.startswith(objection)
    assert bool(likeness.objection) == bool(objection)
    assert (likeness.hits, likeness.picture_count) == (count - lost, count)


def test_a_near_tie_may_be_lost_among_few_pictures() -> None:
    """Of 100 pictures one goes from 0.51 to 0.49: expected accuracy falls by 0.02 points. From 0.51 to 0, by 0.51."""
    truth = np.arange(100) % 2
    before = answers(*truth)
    before[0] = 0.51, 0.49
    for score, objection in ((0.49, ""), (0.0, "loses 1.00 points, 1 of 100 pictures")):
        after = before.copy()
        after[0] = score, 1 - score
        assert compare(before, after, truth, labels=("a", "b")).objection == objection


def test_a_near_tie_does_not_stop_an_export() -> None:
    """The proof runs other batches than the search did: one picture may fall the other way there, not two."""
    truth = np.arange(100) % 2
    for lost, objected in ((1, False), (2, True)):
        found = truth.copy()
        found[:lost] = 1 - found[:lost]
        likeness = compare(answers(*truth), answers(*found), truth, labels=("a", "b"), spare_pictures=1)
        assert bool(likeness.objection) == objected


def test_no_class_may_fall_below_its_interval() -> None:
    """Two of four lost: fp32's four of four reach down to 0.51; the other class has won back what was lost."""
    truth = np.array([0] * 4 + [1] * 396)
    before, after = truth.copy(), truth.copy()
    before[4:8] = 0
    after[:2] = 1
    likeness = compare(answers(*before), answers(*after), truth, labels=("rare", "common"))
    assert likeness.objection == "class 'rare' falls to 0.500, below its interval's 0.510"


def test_answers_must_stay_the_same_mostly() -> None:
    """Equal accuracy with other answers is another model; numbers that are none are none at all."""
    truth = np.zeros(100, int)
    before = answers(*[0] * 50, *[1] * 50)
    assert "only 0.0% of answers" in compare(before, 1 - before, truth, labels=("a", "b")).objection
    assert "no numbers" in compare(before, np.where(before == 0, np.nan, before), truth, labels=("a", "b")).objection


@pytest.mark.parametrize(
    ("machine", "flags", "activation", "reduce_range"),
    [
        ("x86_64", {"avx2"}, QuantType.QUInt8, True),
        ("AMD64", {"avx2", "avx512_vnni"}, QuantType.QUInt8, False),
        ("x86_64", {"amx_int8"}, QuantType.QUInt8, False),
        ("aarch64", {"asimddp"}, QuantType.QInt8, False),
        ("arm64", set(), QuantType.QInt8, False),
    ],
)
def test_number_types_suit_the_cpu(machine: str, flags: set[str], activation: QuantType, reduce_range: bool) -> None:
    """Without VNNI or AMX, x86 saturates unless weights have 7 bits; ARM takes signed activations."""
    types = number_types(machine, frozenset(flags))
    assert (types.activation, types.weight, types.reduce_range) == (activation, QuantType.QInt8, reduce_range)


def test_models_are_timed_in_turns() -> None:
    """After a first run each, fifteen rounds, and the medians of what the clock said."""
    order: list[str] = []
    now = [0.0]

    def run(name: str, *, ms: float) -> None:
        order.append(name)
        now[0] += ms / 1e3

    medians = interleaved_medians_ms([partial(run, "a", ms=2), partial(run, "b", ms=3)], clock=lambda: now[0])
    assert medians == pytest.approx([2, 3])
    assert order == ["a", "b"] * (1 + ROUNDS)


def test_slow_models_are_timed_in_fewer_rounds() -> None:
    """Five rounds where fifteen would take more than the limit."""
    count, now = [0], [0.0]

    def run() -> None:
        count[0] += 1
        now[0] += 2

    interleaved_medians_ms([run], clock=lambda: now[0])
    assert count[0] == 1 + FEWEST_ROUNDS


def test_stratified_takes_every_class_in_turn(pictures: tuple[Picture, ...]) -> None:
    """Six of 48 pictures are two a class, the same ones in whatever order they come."""
    chosen = stratified(pictures, 6)
    assert sorted(item.label for item in chosen) == sorted(LABELS * 2)
    assert stratified(pictures[::-1], 6) == chosen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    data = make_folder(tmp_path_factory.mktemp("data"), count=10)
    config = FitConfig(backbone="resnet18", weights="none", image_size=32, epochs=0)
    train.fit(runs.begin(data, folder, config))
    return folder


def test_export_adds_int8_to_the_bundle(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variant with golden answers, tolerance, accuracy and latency of its own, and the table of candidates."""
    monkeypatch.setattr(int8_search, "_RECIPES", (Recipe(method="minmax", per_channel=True),))
    monkeypatch.setattr("trainer.export.search", partial(search, measure=times(2.0, 1.0)))
    exported = export(run, tmp_path, "m", with_torchscript=False)
    assert exported.int8 is not None
    assert exported.int8.is_kept, exported.int8.reason
    assert [item.runtime for item in exported.parity] == ["onnxruntime fp32", "onnxruntime int8"]
    bundle = load_bundle(exported.folder)
    assert [row.verdict for row in bundle.manifest.candidates] == ["reference", "kept"]
    fp32, int8 = bundle.manifest.variants
    assert (fp32.precision, int8.precision, int8.file) == ("fp32", "int8", "model.int8.onnx")
    assert int8.golden_logits != fp32.golden_logits
    assert int8.tolerance >= 0.02 > fp32.tolerance
    assert all(one.latency_ms and one.accuracy for one in (fp32, int8))
    assert open_model(bundle, precision="auto").variant == int8


def test_export_survives_a_graph_that_cannot_be_quantised(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 is written alone, with the reason."""

    def refuse(*_: object, **__: object) -> Found:
        raise QuantizationError("no such operator")

    monkeypatch.setattr("trainer.export.search", refuse)
    exported = export(run, tmp_path, "m", with_torchscript=False)
    assert exported.int8 is not None
    assert exported.int8.reason == "fp32 alone: no such operator"
    bundle = load_bundle(exported.folder)
    assert [variant.precision for variant in bundle.manifest.variants] == ["fp32"]
    with pytest.raises(BundleError, match="no int8 variant, found fp32"):
        open_model(bundle, precision="int8")


def test_broken_int8_does_not_pass_the_proof(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that answers otherwise than the search said stops the export, and nothing is left."""

    def forge(graph: Path, target: Path, **_: object) -> Found:
        model = onnx.load(graph)
        (head,) = [node for node in model.graph.node if LOGITS.name in node.output]
        head.output[0] = "before"
        model.graph.node.append(helper.make_node("Neg", ["before"], [LOGITS.name]))
        onnx.save(model, target)
        return Found(candidates=(), is_kept=True, reason="", seconds=0)

    monkeypatch.setattr("trainer.export.search", forge)
    with pytest.raises(ParityError, match="onnxruntime int8 is not as right as torch"):
        export(run, tmp_path / "models", "m", with_torchscript=False)
    assert not (tmp_path / "models").exists()


def test_int8_that_forgets_what_it_knows_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same logits, but a similarity that makes every picture unknown."""

    def forge(graph: Path, target: Path, **_: object) -> Found:
        model = onnx.load(graph)
        (end,) = [node for node in model.graph.node if SIMILARITY.name in node.output]
        end.output[0] = "before"
        model.graph.node.append(helper.make_node("Neg", ["before"], [SIMILARITY.name]))
        onnx.save(model, target)
        return Found(candidates=(), is_kept=True, reason="", seconds=0)

    monkeypatch.setattr("trainer.export.search", forge)
    with pytest.raises(ParityError, match=r"onnxruntime int8.*only 0\.0% of pictures stay known or unknown"):
        export(run, tmp_path / "models", "m", with_torchscript=False)


def test_int8_without_onnx_is_refused(run: Path, tmp_path: Path) -> None:
    """It is made from ONNX."""
    with pytest.raises(ConfigError, match="--int8 is made from ONNX"):
        export(run, tmp_path / "models", "m", with_onnx=False, with_int8=True)
