"""Distances of pictures in the features of a network (arXiv 1603.08155), VGG-19's above all.

The weights of VGG-19 are the user's: torchvision's file ``vgg19-dcbd9e9d.pth`` or a conversion of
it. The five features are those after the first convolution of each block; pictures keep their
aspect, their shorter side is brought to 256 pixels. Any other network serves, such as a small one
of a closed world.

    distance = FeatureDistance(read_vgg19(Path("vgg19.safetensors")))
    loss = distance(images, targets)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.personalization.tensor_files import fill, read_flat

__all__ = ["FeatureDistance", "Features", "PictureDistance", "Vgg19", "read_vgg19"]

PictureDistance = Callable[[Tensor, Tensor], Tensor]
"""Of two batches of pictures [b, 3, h, w] in -1..1."""
Features = Callable[[Tensor], Sequence[Tensor]]
"""Features of pictures in 0..1, from the finest."""

BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 1))
"""Width and number of convolutions of each block, up to the last one that is looked at."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)
SIDE = 256
ROLE = "VGG-19"


class Vgg19(nn.Module):
    """The convolutions of VGG-19 (arXiv 1409.1556) with torchvision's names."""

    def __init__(self, width: int = 64) -> None:
        """An untrained network; ``width`` is that of the first block, 64 in the real one."""
        super().__init__()
        layers: list[nn.Module] = []
        self._looked_at = []
        channels = 3
        for number, (wide, count) in enumerate(BLOCKS):
            layers += [nn.MaxPool2d(2)] if number else []
            for index in range(count):
                out = wide * width // 64
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()]
                channels = out
                if index == 0:
                    self._looked_at.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Features of pictures in 0..1."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        values, found = (images - mean) / std, []
        for index, layer in enumerate(self.features):
            values = layer(values)
            if index in self._looked_at:
                found.append(values)
        return found


def read_vgg19(path: Path) -> Vgg19:
    """VGG-19 of torchvision's file; its classifier and last layers are left out.

    Raises:
        WeightsMissing: absent or damaged; UnsafeWeights: a pickle with more than tensors in it.
        UnsupportedModel: another network.
    """
    tensors = read_flat(path.expanduser(), ROLE)
    with torch.device("meta"):
        wanted = set(Vgg19().state_dict())
    own = {name: tensor for name, tensor in tensors.items() if name in wanted}
    return fill(Vgg19, own, what=f"'{path}'", expected="torchvision's VGG-19")


class FeatureDistance:
    """A weighted sum of mean absolute differences."""

    def __init__(
        self, features: Features, weights: Sequence[float] = WEIGHTS, *, side: int = SIDE
    ) -> None:
        """Take a frozen network, a weight for each feature, and the shorter side that it sees."""
        self.features, self.weights, self.side = features, tuple(weights), side

    def __call__(self, images: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """Distance of pictures in -1..1."""
        found = self.features(self._sized(images))
        with torch.no_grad():
            wanted = self.features(self._sized(targets))
        pairs = zip(self.weights, found, wanted, strict=True)
        return sum(weight * F.l1_loss(a, b) for weight, a, b in pairs)

    def _sized(self, pictures: Tensor) -> Tensor:
        pictures, shorter = pictures / 2.0 + 0.5, min(pictures.shape[-2:])
        if shorter == self.side:
            return pictures
        size = tuple(self.side * length // shorter for length in pictures.shape[-2:])
        return F.interpolate(pictures, size, mode="bilinear", antialias=shorter > self.side)
