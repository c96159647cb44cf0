"""Write a run as the next version of a model: model files, golden pictures, manifest; only if all agree."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch

from bundle.contract import Contract
from bundle.golden import replay
from bundle.manifest import Interval, Manifest, Twin
from bundle.preprocess import PreprocessSpec, load_input
from bundle.repository import load_bundle, new_version, write_manifest
from bundle.runtime import Output, joined, open_model
from bundle.scores import probabilities
from trainer import checkpoint
from trainer.calibration import Calibration, compare_temperature, unknown_threshold
from trainer.checkpoint import Run
from trainer.data import Picture, Side
from trainer.draft import INT8_FILE, choose_golden, draft
from trainer.errors import ConfigError, QuantizationError
from trainer.half import FP16_FILE, add_half
from trainer.int8_search import Evidence, Found, search, stratified
from trainer.metrics import Ints, evaluate, fit_temperature
from trainer.onnx_graph import ONNX_FILE, write_onnx
from trainer.portable import PORTABLE_FILE, prove_portable, write_portable
from trainer.progress import Progress
from trainer.proof import Parity, prove
from trainer.report.papers import write_papers
from trainer.sbom import write_sbom
from trainer.session import restore_model
from trainer.similarity import BANK_PICTURES, Recognising, with_bank
from trainer.twins import write_exported_program, write_torchscript
from trainer.variants import (
    bundle_output,
    measure,
    with_latencies,
)

PROOF_FILES: Final = 500  # all where there are fewer; at least 200 are asked for


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export wrote and proved."""

    folder: Path
    parity: list[Parity]
    metrics: dict[str, Interval]
    held_out: Side
    calibration: Calibration
    unknown_below: float
    int8: Found | None  # where it was looked for
    fp16: str  # what came of it; empty where it was not asked for


def export(
    run_folder: Path,
    models: Path,
    name: str,
    *,
    with_onnx: bool = True,
    with_torchscript: bool = True,
    with_portable: bool = False,
    with_int8: bool | None = None,
    with_fp16: bool = False,
) -> Exported:
    """Write models/name/<next version>; raises ParityError, and then nothing is left behind.

    Each format that is asked for is proved against torch. Only a version with ONNX can be served, and only one can
    have the portable graph, INT8 or fp16: ConfigError. `with_torchscript` writes its successor, torch.export, beside.
    INT8 is looked for unless `with_int8` is False, and added where it is as right and faster; fp16 where as right.
    """
    if with_portable and not with_onnx:
        raise ConfigError("--portable stands on the ONNX graph, found --torchscript alone; add --onnx")
    if with_int8 and not with_onnx:
        raise ConfigError("--int8 is made from ONNX, found --torchscript alone; add --onnx, or leave out --int8")
    if with_fp16 and not with_onnx:
        raise ConfigError("--fp16 is made from ONNX, found --torchscript alone; add --onnx, or leave out --fp16")
    run = checkpoint.read_run(run_folder)
    _, tensors = checkpoint.load(run_folder, "best")
    sides = checkpoint.read_split(run_folder)
    model = with_bank(restore_model(run, tensors), stratified(sides["train"], BANK_PICTURES), run.spec)
    held_out: Side = "test" if sides["test"] else "val"
    calibration, unknown_below = _calibrate(model, run, sides["val"], held_out=sides[held_out])
    with new_version(models, name) as (folder, version):
        contract = Contract(
            name=name,
            version=version,
            labels=run.labels,
            preprocess=run.spec,
            mean=run.mean,
            std=run.std,
            temperature=calibration.temperature,
            unknown_below=unknown_below,
        )
        if with_onnx:
            write_onnx(model, contract, folder / ONNX_FILE)
        evidence = Evidence(
            calibration=sides["train"], selection=sides["val"], confirmation=sides[held_out][:PROOF_FILES]
        )
        found = _search_int8(folder, contract, evidence) if with_onnx and with_int8 is not False else None
        fp16 = ""
        if with_fp16:
            fp16 = add_half(folder / ONNX_FILE, folder / FP16_FILE, contract=contract, pictures=evidence.confirmation)
        twins: tuple[Twin, ...] = ()
        if with_torchscript:
            twins += (write_torchscript(model, contract, folder / "model.torchscript.pt"),)
            twins += (write_exported_program(model, contract, folder / "model.pt2"),)
        if with_portable:
            twins += (write_portable(contract, folder / ONNX_FILE, folder / PORTABLE_FILE),)
        manifest = draft(run, contract, twins, folder, choose_golden(sides[held_out]))
        manifest = replace(manifest, candidates=found.candidates if found else ())
        manifest, parity = _prove_and_measure(manifest, folder, model, run, sides[held_out])
        write_papers(folder, run_folder, manifest, parity=tuple(parity))
        write_sbom(folder, manifest)
    return Exported(
        folder=models / name / str(version),
        parity=parity,
        metrics=manifest.metrics,
        held_out=held_out,
        calibration=calibration,
        unknown_below=unknown_below,
        int8=found,
        fp16=fp16,
    )


def _prove_and_measure(
    manifest: Manifest, folder: Path, model: Recognising, run: Run, held_out: tuple[Picture, ...]
) -> tuple[Manifest, list[Parity]]:
    write_manifest(folder, manifest)
    bundle = load_bundle(folder)
    labels = run.labels
    parity = prove(bundle, model, held_out[:PROOF_FILES], labels=labels, spec=run.spec)
    parity += [
        prove_portable(bundle, twin, held_out[:PROOF_FILES]) for twin in manifest.twins if twin.runtime == "portable"
    ]
    targets = np.array([labels.index(item.label) for item in held_out])
    if not manifest.variants:
        logits = torch_output(model, manifest.contract.preprocess, held_out).logits
        scores = probabilities(logits, temperature=manifest.contract.temperature)
        proved = replace(manifest, metrics=evaluate(scores, targets, labels).headlines)
        write_manifest(folder, proved)
        return proved, parity
    scores = probabilities(bundle_output(bundle, held_out).logits, temperature=manifest.contract.temperature)
    metrics = evaluate(scores, targets, labels).headlines
    measured = tuple(measure(bundle, variant, held_out) for variant in manifest.variants)
    proved = replace(manifest, variants=with_latencies(bundle, measured), metrics=metrics)
    write_manifest(folder, proved)
    for variant in proved.variants:
        replay(open_model(load_bundle(folder), precision=variant.precision))
    return proved, parity


def _search_int8(folder: Path, contract: Contract, evidence: Evidence) -> Found:
    try:
        return search(folder / ONNX_FILE, folder / INT8_FILE, contract=contract, evidence=evidence, say=Progress().say)
    except QuantizationError as error:  # fp32 is whole and proved on its own
        return Found(candidates=(), is_kept=False, reason=f"fp32 alone: {error}", seconds=0)


def torch_output(model: Recognising, spec: PreprocessSpec, pictures: tuple[Picture, ...]) -> Output:
    """Return logits (N, C) and similarities (N,) of files through the serving preprocessing and torch."""
    with torch.inference_mode():
        images = (torch.from_numpy(load_input(item.path.read_bytes(), spec).copy()) for item in pictures)
        return joined([Output(*(part.numpy() for part in model(image[None]))) for image in images])


def _calibrate(
    model: Recognising, run: Run, validation: tuple[Picture, ...], *, held_out: tuple[Picture, ...]
) -> tuple[Calibration, float]:
    """Choose temperature and "unknown" threshold on validation, and measure the temperature on the held-out side."""

    def targets(pictures: tuple[Picture, ...]) -> Ints:
        return np.array([run.labels.index(item.label) for item in pictures], dtype=np.int64)

    output = torch_output(model, run.spec, validation)
    temperature = fit_temperature(output.logits.astype(np.float64), targets(validation))
    calibration = compare_temperature(
        (output if held_out == validation else torch_output(model, run.spec, held_out)).logits,
        targets(held_out),
        temperature=temperature,
        fitted_on=f"{len(validation)} validation pictures" + (": these" if held_out == validation else ""),
    )
    return calibration, unknown_threshold(output.similarity)
