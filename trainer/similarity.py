"""How like its training pictures a network finds a picture: its second output, from a bank of their features.

Cosine similarity of what enters the head to the fifth most similar of the bank (deep nearest neighbours, Sun et al.
2022, arXiv:2204.06507). Logits do not tell it.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from bundle.preprocess import PreprocessSpec
from trainer.data import Picture
from trainer.network import Deployed, Device, all_features
from trainer.pictures import EvaluationPictures, evaluation_loader
from trainer.session import EVALUATION_BATCH

BANK_PICTURES: Final = 512  # at most: of 1,280 features 2.6 MB
_NEIGHBOUR: Final = 5  # whose similarity counts: a single odd training picture vouches for nothing
_SHORTEST: Final = 1e-12  # length of features that still have a direction


class Recognising(nn.Module):
    """uint8 (N, H, W, 3) -> logits (N, C) and similarity (N,), -1..1, both float32: what is exported."""

    bank: Tensor

    def __init__(self, model: Deployed, features: Tensor) -> None:
        """Take features (M, F) of training pictures, M >= 1."""
        super().__init__()
        self.model = model
        self.register_buffer("bank", functional.normalize(features).T.contiguous())  # (F, M)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and similarity."""
        return self.answer(self.model.normalise(images))

    def answer(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same for normalised float32 (N, 3, H, W)."""
        logits, features = self.model.classifier.with_features(planes)
        products = features @ self.bank  # (N, M)
        nearest = products.topk(min(_NEIGHBOUR, self.bank.shape[1])).values.amin(1)
        lengths = torch.linalg.vector_norm(features, dim=1).clamp(min=_SHORTEST)
        return logits, (nearest / lengths).clamp(-1, 1)


def with_bank(model: Deployed, pictures: tuple[Picture, ...], spec: PreprocessSpec) -> Recognising:
    """Give a network on the CPU the bank of these training pictures, seen as a server sees them."""
    seen = EvaluationPictures(pictures, [0] * len(pictures), spec)
    loader = evaluation_loader(seen, batch_size=EVALUATION_BATCH, workers=0)
    return Recognising(model, all_features(model, loader, Device(name="cpu"))[0]).eval()
