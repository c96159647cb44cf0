"""Bundles around model files that a test wrote itself, and a network small enough to be written in a second."""

from pathlib import Path

import torch
from torch import nn

from bundle.contract import Contract
from bundle.manifest import GoldenPicture, Manifest, Provenance, Twin, Variant
from bundle.preprocess import PreprocessSpec
from bundle.repository import Bundle, file_sha256, load_bundle, write_manifest
from trainer.classifier import Classifier
from trainer.network import Deployed
from trainer.onnx_graph import ONNX_FILE
from trainer.similarity import Recognising

LABELS = ("blue", "green", "red")
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.25, 0.25)


def make_bundle(folder: Path, contract: Contract, *twins: Twin) -> Bundle:
    """Write a manifest for model.onnx and twins that stand in `folder`; enough for the proof, not for serving."""
    variant = Variant(
        precision="fp32",
        file=ONNX_FILE,
        sha256=file_sha256(folder / ONNX_FILE),
        golden_logits=((0.0,) * len(contract.labels),),
        golden_similarity=(0.0,),
        tolerance=1e-3,
        logit_tolerance=1e-3,
        similarity_tolerance=1e-3,
    )
    provenance = Provenance(
        backbone="tiny",
        weights="random",
        weights_licence="none",
        data_fingerprint="0" * 64,
        split="none",
        seed=0,
        libraries={},
    )
    manifest = Manifest(
        contract=contract,
        created="2026-01-01T00:00:00+00:00",
        variants=(variant,),
        twins=twins,
        golden=(GoldenPicture(file="00.png", sha256="0" * 64, label=contract.labels[0]),),
        metrics={},
        provenance=provenance,
    )
    write_manifest(folder, manifest)
    return load_bundle(folder)


def tiny_network(seed: int = 0) -> Recognising:
    """Return a convolution with batch normalisation, dropout and a head of three labels; its weights are random."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 5, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.5), nn.Linear(8, len(LABELS)))
    nn.init.normal_(network[-1].weight, std=8)  # answers that differ from picture to picture
    return with_any_bank(Deployed(Classifier(network, "6"), MEAN, STD))


def with_any_bank(model: Deployed) -> Recognising:
    """Give a network a bank of seven pictures that are none: enough where the bank does not matter."""
    features = torch.rand((7, model.classifier.head.in_features), generator=torch.Generator().manual_seed(7))
    return Recognising(model, features).eval()


def tiny_contract(spec: PreprocessSpec, *, temperature: float = 1.5) -> Contract:
    """Return the contract of `tiny_network`."""
    return Contract(
        name="tiny",
        version=1,
        labels=LABELS,
        preprocess=spec,
        mean=MEAN,
        std=STD,
        temperature=temperature,
        unknown_below=0.5,
    )
