"""How like its training pictures a network finds a picture."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainer.classifier import Classifier
from trainer.network import Deployed
from trainer.similarity import Recognising

from .bundles import tiny_network

SIDE = 16


def plain() -> Deployed:
    """Return a network whose features are a picture's mean red, green and blue, -1..1."""
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    return Deployed(Classifier(network, "2"), (0.5,) * 3, (0.5,) * 3)


def similarity(model: Recognising, *colours: tuple[int, int, int]) -> Tensor:
    """Return what a network says of pictures of one colour each."""
    images = torch.stack([torch.tensor(colour, dtype=torch.uint8).expand(SIDE, SIDE, 3) for colour in colours])
    with torch.no_grad():
        return model.eval()(images)[1]


def test_fifth_most_similar_of_the_bank_counts() -> None:
    """Against five reds and a blue, red is at 1 and blue at the cosine of 90 degrees; with four reds red is as far."""
    red, blue = torch.tensor([2.0, 0, 0]), torch.tensor([0, 0, 0.1])
    five, four = (Recognising(plain(), torch.stack([red] * count + [blue])) for count in (5, 4))
    of_red = (255, 127, 127)
    assert similarity(five, of_red).item() == pytest.approx(1, abs=1e-3)
    assert similarity(five, (127, 127, 255)).item() == pytest.approx(0, abs=1e-2)
    assert similarity(four, of_red).item() == pytest.approx(0, abs=1e-2)


def test_least_similar_counts_where_there_are_fewer_than_five() -> None:
    """Two pictures to learn from are two to compare with."""
    model = Recognising(plain(), torch.tensor([[1.0, 0, 0], [1.0, 1, 0]]))
    assert similarity(model, (255, 127, 127)).item() == pytest.approx(0.5**0.5, abs=1e-2)


@pytest.mark.parametrize("seed", range(3))
def test_similarity_is_a_cosine_of_the_picture_alone(seed: int) -> None:
    """Within -1..1, of its own training picture too, and wherever in a batch the picture stands."""
    network = tiny_network(seed)
    images = torch.randint(0, 256, (9, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.no_grad():
        own = network.model.classifier.features(network.model.normalise(images))
        for features in (torch.randn(20, own.shape[1]), own.repeat(5, 1), -own):
            model = Recognising(network.model, features).eval()
            found = model(images)[1]
            order = torch.randperm(len(images))
            assert found.dtype == torch.float32
            assert found.abs().max() <= 1
            np.testing.assert_allclose(model(images[order])[1], found[order], atol=1e-6)


def test_features_of_no_length_are_like_nothing() -> None:
    """Zero, not NaN, which would be below no threshold."""
    model = Recognising(plain(), torch.zeros(6, 3))
    assert similarity(model, (255, 0, 0)).item() == 0
