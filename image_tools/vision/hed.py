"""HED, holistically-nested edge detection (arXiv 1504.06375): soft edges of photographs.

Five blocks of a VGG see the picture at falling resolution. Each gives a map of edges (section 3.2,
side outputs), which are brought to the picture's size and put together: by a learned sum where the
file has one (Eq. 4, the authors' networks), by their mean where it has none (ControlNet's
annotator), and made a probability.

Files are named as those of ControlNet's annotator: ``norm`` (what is taken off red, green and blue
in bytes), ``block1.convs.0`` to ``block5.convs.2``, ``block1.projection`` and so on, and ``fuse``.
No weights ship; ``python -m image_tools.vision.convert_hed`` makes a file of public ones.

    net = load_hed("hed.safetensors")
    edges = soft_edges(net, images)                       # images [b, h, w, 3] in 0..1
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.loading import readable_weights
from image_tools.diffusion.weights import check_safetensors_file
from image_tools.errors import UnsupportedModel
from renderers.errors import check_shape

__all__ = ["DEPTHS", "HedNet", "load_hed", "soft_edges"]

ROLE = "edge network"
DEPTHS = (2, 2, 3, 3, 3)
"""Convolutions of each block."""
WIDTHS = (64, 128, 256, 512, 512)
SHOWN_KEYS = 5


class _Block(nn.Module):
    """Convolutions of one resolution, and the map that is made of them."""

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        inputs = (channels, *[width] * (depth - 1))
        self.convs = nn.Sequential(*(nn.Conv2d(n, width, 3, padding=1) for n in inputs))
        self.projection = nn.Conv2d(width, 1, 1)

    def forward(self, hidden: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            hidden = F.relu(conv(hidden))
        return hidden, self.projection(hidden)


class HedNet(nn.Module):
    """The network; frozen, in float32."""

    def __init__(self, widths: Sequence[int] = WIDTHS, *, fuse: nn.Module | None = None) -> None:
        """Make it with random weights.

        Args:
            widths: channels of the five blocks.
            fuse: what puts the five maps together, a convolution from 5 channels to 1; None for
                their mean.
        """
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))
        inputs = (3, *widths[:-1])
        for k, (channels, width, depth) in enumerate(zip(inputs, widths, DEPTHS, strict=True), 1):
            self.add_module(f"block{k}", _Block(channels, width, depth))
        self.fuse = fuse
        self.eval().requires_grad_(False)

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
        """Logits of edges of pictures in 0..255."""
        hidden, maps = pixels - self.norm, []
        for k in range(1, len(DEPTHS) + 1):
            if k > 1:
                hidden = F.max_pool2d(hidden, 2, ceil_mode=True)
            hidden, side = self.get_submodule(f"block{k}")(hidden)
            maps.append(F.interpolate(side, pixels.shape[-2:], mode="bilinear"))
        stacked = torch.cat(maps, dim=1)
        return stacked.mean(dim=1, keepdim=True) if self.fuse is None else self.fuse(stacked)


@torch.no_grad()
def soft_edges(net: HedNet, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b h w 3"]:
    """How likely each pixel is an edge, as grey pictures.

    Raises:
        ShapeError: if ``images`` is not [b, h, w, 3].
    """
    check_shape("images", images, "B H W 3")
    logits = net(255.0 * images.float().movedim(-1, 1))
    return logits.sigmoid().movedim(1, -1).expand(*images.shape[:3], 3)


def load_hed(path: Path | str) -> HedNet:
    """Read a network from a ``.safetensors`` file.

    Raises:
        WeightsMissing: absent or damaged; UnsafeWeights for a pickle.
        UnsupportedModel: of another network.
    """
    from safetensors.torch import load_file

    path = Path(path).expanduser()
    check_safetensors_file(path, role=ROLE)
    with readable_weights(path, ROLE):
        tensors = load_file(path)
    kernels = [tensors.get(f"block{k}.convs.0.weight") for k in range(1, len(DEPTHS) + 1)]
    known = all(kernel is not None for kernel in kernels)
    widths = [len(kernel) for kernel in kernels] if known else WIDTHS
    fuse = nn.Conv2d(len(DEPTHS), 1, 1) if "fuse.weight" in tensors else None
    net = HedNet(widths, fuse=fuse)
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    actual = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = sorted(n for n in {*actual, *expected} if actual.get(n) != expected.get(n))
    if wrong:
        raise UnsupportedModel(
            f"'{path}' is no HED network: {', '.join(wrong[:SHOWN_KEYS])} are absent, unknown or "
            "of another shape. Expected a file that image_tools.vision.convert_hed made."
        )
    net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return net
