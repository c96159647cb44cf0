"""Golden pictures refuse every bundle whose answers changed, and only those."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bundle.errors import BundleError, GoldenError
from bundle.golden import answers, open_proved, replay, replay_together
from bundle.repository import GOLDEN_FOLDER, Bundle, load_bundle, write_manifest
from bundle.runtime import open_model
from tests.bundle.tiny_bundle import SPEC, add_variant, forge, golden_files, graph, make_bundle


@pytest.fixture
def tiny(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "models")


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_variant_is_proved_as_it_is_going_to_run(tiny: Bundle, monkeypatch: pytest.MonkeyPatch):
    """With the provider, the threads and the memory of a GPU that were asked for."""
    asked: list[dict[str, object]] = []

    def opened(bundle: Bundle, **options: object):
        asked.append(options)
        return open_model(bundle)

    monkeypatch.setattr("bundle.golden.open_model", opened)
    wanted = {"precision": "fp32", "provider": "auto", "intra_op_threads": 3, "cuda_memory_mb": 512}
    open_proved(tiny, **wanted)  # type: ignore[arg-type]
    assert asked == [wanted]


def test_an_untouched_bundle_passes(tiny: Bundle):
    """The answers here are the answers at export."""
    assert replay(open_model(tiny)) < 1e-5


def test_answers_are_those_computed_by_hand(tiny: Bundle):
    """Black gets (4, -4), white (-4, 4), and the white frame around black is cropped away."""
    logits, similarity = answers(open_model(tiny), tiny.golden_pictures(), SPEC)
    np.testing.assert_allclose(similarity, [1, 1, 1], atol=1e-6)
    np.testing.assert_allclose(logits, [[4, -4], [-4, 4], [4, -4]], atol=1e-5)


def test_auto_answers_with_fp32_where_int8_does_not_prove_itself(tiny: Bundle):
    """Integer kernels that answer otherwise on this machine are told, not served; by name they are refused."""
    assert open_proved(add_variant(tiny, "int8")).model.variant.precision == "int8"
    skewed = replace(tiny, manifest=replace(tiny.manifest, variants=tiny.manifest.variants[:1]))
    both = add_variant(skewed, "int8", steepness=4.0)
    proved = open_proved(both)
    assert (proved.model.variant.precision, proved.difference < 1e-5) == ("fp32", True)
    assert "(int8): golden picture black.png answers" in proved.refused
    with pytest.raises(GoldenError, match=r"\(int8\)"):
        open_proved(both, precision="int8")


def test_a_flipped_byte_in_int8_is_no_reason_to_fall_back(tiny: Bundle):
    """A file that is not what was exported stops everything."""
    both = add_variant(tiny, "int8")
    flip_byte(both.folder / "model.int8.onnx")
    with pytest.raises(BundleError, match="sha256"):
        open_proved(both)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_pictures_are_answered_together_as_they_are_alone(tiny: Bundle, size: int):
    """Fewer than there are, as many, and more."""
    replay_together(open_model(tiny), size)


@pytest.mark.parametrize("size", [2, 4])
def test_a_graph_that_mixes_the_pictures_of_a_batch_is_refused(tiny: Bundle, size: int):
    """One at a time it answers as at export."""
    model = open_model(forge(tiny, graph(tiny.manifest.contract, is_mixed=True)))
    assert replay(model) < 1e-5
    with pytest.raises(GoldenError, match=rf"fp32, {size} together\): golden picture white\.png answers 'dark'"):
        replay_together(model, size)


def test_a_changed_constant_in_the_graph_is_refused(tiny: Bundle):
    """Hash and metadata fit the changed graph, so only its answers betray it."""
    forged = forge(tiny, graph(tiny.manifest.contract, steepness=4.0))
    with pytest.raises(GoldenError, match=r"black\.png answers 'dark'.*tolerance 0\.001"):
        replay(open_model(forged))


def test_a_changed_bank_in_the_graph_is_refused(tiny: Bundle):
    """Every logit is as at export, the similarities are not."""
    forged = forge(tiny, graph(tiny.manifest.contract, bank=0.99))
    with pytest.raises(GoldenError, match=r"of similarity 0\.01, tolerance 0\.001"):
        replay(open_model(forged))


def test_another_resize_told_consistently_is_refused(tiny: Bundle):
    """Manifest and model agree on the wrong resize; the framed picture shows it."""
    contract = replace(tiny.manifest.contract, preprocess=replace(SPEC, resize_px=4))
    forged = forge(tiny, graph(contract), contract=contract)
    with pytest.raises(GoldenError, match=r"framed\.png answers 'light'.*at export 'dark'"):
        replay(open_model(forged))


def test_another_resize_in_the_manifest_alone_is_refused(tiny: Bundle):
    """The contract inside the model names the field that differs."""
    contract = replace(tiny.manifest.contract, preprocess=replace(SPEC, resize_px=4))
    write_manifest(tiny.folder, replace(tiny.manifest, contract=contract))
    with pytest.raises(BundleError, match="disagree on preprocess"):
        open_model(load_bundle(tiny.folder))


def test_swapped_labels_are_refused(tiny: Bundle):
    """The contract inside the model still has the old order."""
    contract = replace(tiny.manifest.contract, labels=("light", "dark"))
    write_manifest(tiny.folder, replace(tiny.manifest, contract=contract))
    with pytest.raises(BundleError, match="disagree on labels"):
        open_model(load_bundle(tiny.folder))


def test_a_changed_temperature_is_refused(tiny: Bundle):
    """The contract inside the model still has the old temperature."""
    contract = replace(tiny.manifest.contract, temperature=2.0)
    write_manifest(tiny.folder, replace(tiny.manifest, contract=contract))
    with pytest.raises(BundleError, match=r"disagree on temperature: 2\.0 here, 1\.0"):
        open_model(load_bundle(tiny.folder))


def test_one_flipped_byte_in_a_golden_picture_is_refused(tiny: Bundle):
    """The picture is no longer the one that was exported."""
    flip_byte(tiny.folder / GOLDEN_FOLDER / "white.png")
    with pytest.raises(BundleError, match=r"white\.png: sha256 is"):
        replay(open_model(tiny))


def test_one_flipped_byte_in_the_model_is_refused(tiny: Bundle):
    """No session is opened on a file that was changed."""
    flip_byte(tiny.folder / tiny.manifest.variants[0].file)
    with pytest.raises(BundleError, match="sha256 is"):
        open_model(tiny)


def test_a_golden_picture_that_cannot_be_read_is_refused(tiny: Bundle, monkeypatch: pytest.MonkeyPatch):
    """A decoder that fails on this machine is found before serving."""
    files = {name: data[:60] for name, data in golden_files().items()}
    monkeypatch.setattr(Bundle, "golden_picture", lambda _, item: files[item.file])
    with pytest.raises(GoldenError, match="a golden picture cannot be read: PNG"):
        replay(open_model(tiny))


def test_answers_that_are_not_numbers_are_refused(tiny: Bundle):
    """NaN compares false with every tolerance and must not pass for it."""
    forged = forge(tiny, graph(tiny.manifest.contract, steepness=float("nan")))
    with pytest.raises(GoldenError):
        replay(open_model(forged))


def test_no_numbers_are_refused_also_where_the_best_label_would_be_the_first(tiny: Bundle):
    """The place of the best of nothing but NaN is 0: for black it is right."""
    forged = forge(tiny, graph(tiny.manifest.contract, steepness=float("nan")))
    manifest = forged.manifest
    place = [picture.file for picture in manifest.golden].index("black.png")
    (variant,) = manifest.variants
    variant = replace(
        variant,
        golden_logits=(variant.golden_logits[place],),
        golden_similarity=(variant.golden_similarity[place],),
    )
    write_manifest(forged.folder, replace(manifest, golden=(manifest.golden[place],), variants=(variant,)))
    with pytest.raises(GoldenError, match="difference nan"):
        replay(open_model(load_bundle(forged.folder)))


def test_another_best_label_is_refused_within_any_tolerance(tiny: Bundle):
    """A wide tolerance forgives a difference of scores, never another answer."""
    forged = forge(tiny, graph(tiny.manifest.contract, steepness=-8.0), tolerance=1.0, logit_tolerance=100.0)
    with pytest.raises(GoldenError, match=r"black\.png answers 'light'"):
        replay(open_model(forged))


def test_a_skew_that_saturation_hides_is_refused(tmp_path: Path):
    """At temperature 0.05 every probability is 0 or 1, with the right graph and with a halved one."""
    sure = make_bundle(tmp_path / "models", temperature=0.05)
    assert replay(open_model(sure)) < 1e-5
    halved = forge(sure, graph(sure.manifest.contract, steepness=4.0))
    with pytest.raises(GoldenError, match=r"difference \S+e-\d+, tolerance 0\.001; of logits 2, tolerance 0\.01"):
        replay(open_model(halved))


def test_fp32_that_takes_over_must_prove_itself_too(tiny: Bundle):
    """Where int8 does not, and fp32 neither, nothing serves."""
    forged = forge(tiny, graph(tiny.manifest.contract, steepness=4.0))
    both = add_variant(forged, "int8", steepness=2.0)
    with pytest.raises(GoldenError, match=r"\(fp32\)"):
        open_proved(both)
