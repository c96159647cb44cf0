"""One graph from a decoded picture of any size to probabilities answers as the bundle's own path does."""

import json
import shutil
import subprocess
from pathlib import Path
from string import Template

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from PIL import Image

from bundle.contract import CONTRACT_KEY, Contract, contract_to_json
from bundle.errors import BundleError
from bundle.manifest import Twin
from bundle.preprocess import PreprocessSpec, to_input
from bundle.repository import Bundle
from bundle.runtime import joined, open_model
from bundle.scores import probabilities
from trainer import portable
from trainer.data import Picture, load_labelled
from trainer.errors import ConfigError, ParityError
from trainer.export import export
from trainer.onnx_graph import ONNX_FILE, write_onnx
from trainer.portable import PORTABLE_FILE, open_portable, prove_portable, write_portable

from .bundles import LABELS, make_bundle, tiny_contract, tiny_network
from .pictures import make_folder

JAVASCRIPT = Path(__file__).parents[1] / "portable"
SPECS = {
    "bicubic, margin": PreprocessSpec(resize_px=64, crop_px=56, interpolation="bicubic"),
    "bilinear, margin": PreprocessSpec(resize_px=73, crop_px=64, interpolation="bilinear"),
    "bicubic, whole square": PreprocessSpec(resize_px=48, crop_px=48, interpolation="bicubic"),
}
CONTRACT = tiny_contract(SPECS["bicubic, margin"])
SIZES = [  # (height, width): enlarged, kept, shrunk, odd and even margins, long and thin, single pixels
    *((1, 1), (1, 40), (40, 1), (2, 3), (5, 4), (31, 33), (48, 48), (64, 64), (73, 73), (63, 65), (64, 192), (192, 64)),
    *((37, 111), (99, 100), (128, 96), (255, 256), (300, 100), (333, 500), (7, 300), (640, 427), (1200, 900)),
]


def pictures() -> list[Image.Image]:
    """Return tinted noise and hard edges of every size: more than photographs ask of a filter."""
    generator = np.random.default_rng(0)
    items = []
    for height, width in (*SIZES, *SIZES):
        tint, contrast = generator.uniform(0, 255, 3), 60 if len(items) < len(SIZES) else 1000
        pixels = tint + generator.uniform(-contrast, contrast, (height, width, 3))
        items.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return items


@pytest.fixture(scope="module", params=SPECS.values(), ids=SPECS)
def any_spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Twin]:
    """Both graphs of the tiny network for each filter, with and without a margin around the square."""
    folder, contract = tmp_path_factory.mktemp("portable"), tiny_contract(request.param)
    write_onnx(tiny_network(), contract, folder / ONNX_FILE)
    return add_portable(folder, contract)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network as `write_onnx` leaves it, for CONTRACT."""
    path = tmp_path_factory.mktemp("classifier") / ONNX_FILE
    write_onnx(tiny_network(), CONTRACT, path)
    return path


@pytest.fixture
def made(classifier: Path, tmp_path: Path) -> tuple[Bundle, Twin]:
    """A bundle of CONTRACT to be spoiled."""
    return add_portable(Path(shutil.copytree(classifier.parent, tmp_path / "bundle")), CONTRACT)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Picture, ...]:
    return load_labelled(make_folder(tmp_path / "data", count=4, side=90), LABELS, max_bad=0)


def add_portable(folder: Path, contract: Contract) -> tuple[Bundle, Twin]:
    """Write the portable graph beside model.onnx, and a manifest around both."""
    twin = write_portable(contract, folder / ONNX_FILE, folder / PORTABLE_FILE)
    return make_bundle(folder, contract, twin), twin


def own_answers(bundle: Bundle, items: list[Image.Image]) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return probabilities (N, C), similarities (N,) through the bundle's resize, fp32 graph and softmax."""
    contract, model = bundle.manifest.contract, open_model(bundle)
    output = joined([model.run(to_input(item, contract.preprocess)[None]) for item in items])
    return probabilities(output.logits, temperature=contract.temperature), output.similarity


def test_any_size_answers_as_the_bundle_does(any_spec: tuple[Bundle, Twin]) -> None:
    """At most one grey level off, and hardly anywhere; equal top-1, equal probabilities."""
    bundle, twin = any_spec
    spec, session, items = bundle.manifest.contract.preprocess, open_portable(bundle, twin), pictures()
    answers, similarities, off = [], [], 0
    for item in items:
        answer, likeness, found = session.run(["probabilities", "similarity", "images"], {"image": np.asarray(item)})
        difference = np.abs(found[0].astype(int) - to_input(item, spec))
        assert difference.max() <= 1, item.size
        off += int((difference > 0).sum())
        answers.append(answer)
        similarities.append(likeness)
    assert off <= 1e-5 * len(items) * spec.crop_px**2 * 3
    wanted, wanted_similarities = own_answers(bundle, items)
    np.testing.assert_allclose(np.concatenate(similarities), wanted_similarities, atol=1e-4)
    assert len(set(wanted.argmax(1))) > 1  # a network that always says the same would prove nothing
    assert (np.stack(answers).argmax(1) == wanted.argmax(1)).all()
    np.testing.assert_allclose(np.stack(answers), wanted, atol=1e-4)


def test_graph_is_one_file_of_standard_operators(made: tuple[Bundle, Twin]) -> None:
    """Opset 18 alone, IR 10 at most, one uint8 picture in, float32 probabilities out, the contract inside."""
    path = made[0].folder / PORTABLE_FILE
    model = onnx.load(path)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert model.ir_version <= 10
    assert {node.domain for node in model.graph.node} == {""}
    assert [(item.key, item.value) for item in model.metadata_props] == [(CONTRACT_KEY, contract_to_json(CONTRACT))]
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (image,), (answer, likeness) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(uint8)", ["height", "width", 3])
    assert (answer.name, answer.type, answer.shape) == ("probabilities", "tensor(float)", [len(LABELS)])
    assert (likeness.name, likeness.type, likeness.shape) == ("similarity", "tensor(float)", [1])


def test_honest_graph_passes_the_proof(made: tuple[Bundle, Twin], files: tuple[Picture, ...]) -> None:
    """Real files; the skews below are refused for their skew alone."""
    parity = prove_portable(*made, files)
    assert (parity.runtime, parity.picture_count, parity.equal_top1) == ("portable", 12, 12)
    assert parity.max_difference <= 1e-5


@pytest.mark.parametrize(
    ("part", "honest", "skewed"),
    [
        ("_FRONT", "values = Where (is_near, near, beyond)", "values = Max (near, zero)"),
        ("_FRONT", "left = Div (free_width, two)", "left = Identity (free_width)"),
        ("_FRONT", "high_up = Add (high, half_level)", "high_up = Add (high, white)"),
        ("_BACK", "$temperature", "0.5"),
    ],
    ids=["another filter", "another crop", "another rounding", "another calibration"],
)
def test_skewed_graph_is_refused(
    made: tuple[Bundle, Twin],
    files: tuple[Picture, ...],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    honest: str,
    skewed: str,
) -> None:
    """A portable graph that resizes or calibrates otherwise than the bundle does not pass."""
    monkeypatch.setattr(portable, "Template", lambda text: Template(text.replace(honest, skewed)))
    nodes = portable._FILTERS["bicubic"][1].replace(honest, skewed)
    monkeypatch.setitem(portable._FILTERS, "bicubic", (portable._FILTERS["bicubic"][0], nodes))
    with pytest.raises(ParityError, match="portable graph disagrees with the bundle on"):
        prove_portable(*add_portable(made[0].folder, CONTRACT), files)


def test_other_weights_are_refused(made: tuple[Bundle, Twin], files: tuple[Picture, ...]) -> None:
    """A portable graph that was made from another classifier does not pass."""
    bundle, twin = made
    write_onnx(tiny_network(seed=1), CONTRACT, bundle.folder / ONNX_FILE)
    with pytest.raises(ParityError, match="portable graph disagrees with the bundle on"):
        prove_portable(make_bundle(bundle.folder, CONTRACT, twin), twin, files)


def test_changed_graph_is_refused(made: tuple[Bundle, Twin]) -> None:
    """By its hash, and by the contract that it carries."""
    bundle, twin = made
    other = make_bundle(bundle.folder, tiny_contract(SPECS["bicubic, margin"], temperature=0.5), twin)
    with pytest.raises(BundleError, match="disagree on temperature"):
        open_portable(other, twin)
    with (bundle.folder / PORTABLE_FILE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BundleError, match="sha256 is"):
        open_portable(bundle, twin)


def test_portable_graph_wants_the_onnx_graph(tmp_path: Path) -> None:
    """Refused before the run is even read."""
    with pytest.raises(ConfigError, match="--portable stands on the ONNX graph"):
        export(tmp_path / "none", tmp_path / "models", "m", with_onnx=False, with_portable=True)


@pytest.fixture(scope="module")
def node() -> str:
    """Node with onnxruntime-node, which is fetched once with npm."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("node is not installed; `make test-portable` installs it and runs this test")
    if not (JAVASCRIPT / "node_modules").exists():
        npm = shutil.which("npm")
        assert npm, "node is here, npm is not; `make test-portable` installs it"
        subprocess.run([npm, "ci"], cwd=JAVASCRIPT, check=True, timeout=300)
    return program


def test_javascript_answers_as_the_bundle_does(node: str, any_spec: tuple[Bundle, Twin], tmp_path: Path) -> None:
    """The same decoded pictures through onnxruntime-node: equal top-1, equal probabilities."""
    bundle, items = any_spec[0], pictures()
    cases = []
    for number, item in enumerate(items):
        (tmp_path / f"{number}.rgb").write_bytes(item.tobytes())
        cases.append({"file": str(tmp_path / f"{number}.rgb"), "height": item.height, "width": item.width})
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    line = [node, JAVASCRIPT / "classify.mjs", bundle.folder / PORTABLE_FILE, tmp_path / "cases.json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    answers, (wanted, _) = np.array(json.loads(done.stdout)), own_answers(bundle, items)
    assert answers.shape == wanted.shape
    assert (answers.argmax(1) == wanted.argmax(1)).all()
    np.testing.assert_allclose(answers, wanted, atol=1e-4)
