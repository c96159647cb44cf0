"""Grad-CAM: where a convolutional network looked for its answer.

Selvaraju et al. 2017 (arXiv:1610.02391), eq. 1 and 2, on the last feature map that still has a place for things: the
last output (N, K, h, w) with more than one cell. That is found by running the network, so that no family of backbones
needs an entry here.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import TrainerError
from trainer.network import Deployed

_BATCH: Final = 16


def grad_cam(model: Deployed, images: Tensor, classes: Tensor) -> Tensor:
    """Return heat (N, H, W) float32 in 0..1, how much each place speaks for `classes` (N,) in uint8 (N, H, W, 3).

    The hottest place of every picture is 1; a picture where nothing speaks for its class is 0 throughout. Raises
    TrainerError for a network without feature maps.
    """
    model.eval()
    layer = _last_feature_map(model, images[:1])
    starts = range(0, len(images), _BATCH)
    batches = [(images[start : start + _BATCH], classes[start : start + _BATCH]) for start in starts]
    return torch.cat([_heat(model, layer, *batch) for batch in batches])


def _last_feature_map(model: Deployed, image: Tensor) -> nn.Module:
    found: list[nn.Module] = []

    def note(layer: nn.Module, _: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
            found.append(layer)

    hooks = [layer.register_forward_hook(note) for layer in model.classifier.network.modules()]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise TrainerError("this network has no feature map larger than one cell; fit with a larger --image-size")
    return found[-1]


def _heat(model: Deployed, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    caught: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        caught.append(output.detach().requires_grad_())  # nothing below this layer needs a gradient
        return caught[-1].clone()  # an activation that follows may work in place

    hook = layer.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = model(images)
            (gradients,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), caught[-1])
    finally:
        hook.remove()
    weights = gradients.mean((2, 3), keepdim=True)  # (N, K, 1, 1), eq. 1
    maps = (weights * caught[-1].detach()).sum(1, keepdim=True).relu()  # (N, 1, h, w), eq. 2
    heat = F.interpolate(maps, size=images.shape[1:3], mode="bilinear", align_corners=False)[:, 0]
    return heat / heat.amax((1, 2), keepdim=True).clamp_min(torch.finfo(heat.dtype).tiny)
