"""The judge: one small convolutional network that says what a 64x64 image of an object shows.

It names the kind, the colour, the side that is seen and the pattern. It is trained on renders of
toybox objects alone (``studio.training.judge``), never on the outputs of a prior, so that it can
judge them. Kinds whose front looks like their back have no front to find: see
:data:`SYMMETRIC_KINDS`.

    judge = load_judge()
    verdicts = judge(images)  # [b, h, w, 3] in 0..1
    verdicts.kind.argmax(-1)
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.weight_writing import write_safetensors
from renderers.errors import check_shape
from scenes.toybox.catalog import COLOR_NAMES, KIND_NAMES, PATTERNS
from studio.errors import WeightsMissing

__all__ = [
    "FACELESS_KINDS",
    "JUDGE_WEIGHTS",
    "SYMMETRIC_KINDS",
    "VIEWS",
    "Judge",
    "JudgeNet",
    "Verdicts",
    "load_judge",
    "save_judge",
    "split_heads",
]

VIEWS: tuple[str, ...] = ("front", "side", "back", "overhead")
SYMMETRIC_KINDS: tuple[str, ...] = (
    "apple",
    "donut",
    "ice_cream",
    "mushroom",
    "hamburger",
    "cupcake",
    "table",
    "lamp",
    "tree",
)
"""Kinds without a front: bodies of revolution, up to a leaf, or to dots and sprinkles at random.

Derived by ``front_back_difference`` in ``studio.evaluation.symmetry``: their mean front and mean
back differ by less than 0.02 of the full range per pixel of the silhouette (0 to 0.016), those of
all other kinds by more (castle 0.022, by its gate, to train 0.33). The judge's view head is neither
trained nor asked about them.
"""
FACELESS_KINDS: tuple[str, ...] = ("cactus", "mug", "teapot", "umbrella")
"""Kinds with a front but without a face: their back is the mirror image of their front.

Their front is told by left and right alone, by a handle, a spout, an arm or a hook, so there is
nothing that could be seen once too often: they have no Janus score. Derived in the same way: front
and mirrored back differ by less than 0.001, those of all kinds with a face by more than 0.02.
"""
JUDGE_WEIGHTS = Path(__file__).resolve().parent / "weights" / "judge.safetensors"
IMAGE_SIZE = 64
WIDTHS = (16, 32, 64, 128)
"""Channels after each halving of the image; the last map is 4x4."""
PLACES = 32
"""Channels that keep their place in the last map: what is left, right, above and below."""
HEADS: dict[str, int] = {
    "kind": len(KIND_NAMES),
    "color": len(COLOR_NAMES),
    "pattern": len(PATTERNS),
    "view": len(KIND_NAMES) * len(VIEWS),
}
"""Outputs of each head, side by side in this order. What a front looks like depends on the kind, so
there are logits of the views for each kind."""


class _Block(nn.Module):
    """Halve the image, then one residual convolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
        self.down_norm = nn.BatchNorm2d(after)
        self.same = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.same_norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down_norm(self.down(x)))
        return F.relu(x + self.same_norm(self.same(x)))


class JudgeNet(nn.Module):
    """From images ``[b, 3, 64, 64]`` in 0..1 to the logits of all heads side by side."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        last = WIDTHS[-1]
        self.stem = nn.Conv2d(3, WIDTHS[0], 3, stride=2, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(WIDTHS[0])
        self.blocks = nn.Sequential(*[_Block(a, b) for a, b in pairwise(WIDTHS)])
        self.places = nn.Conv2d(last, PLACES, 1)
        side = IMAGE_SIZE // 2 ** len(WIDTHS)
        self.heads = nn.Linear(last + PLACES * side * side, sum(HEADS.values()))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b outputs"]:
        """Logits in the order of :data:`HEADS`."""
        x = F.relu(self.stem_norm(self.stem(images * 2.0 - 1.0)))
        x = self.blocks(x)
        placed = F.relu(self.places(x)).flatten(1)
        return self.heads(torch.cat([x.mean((2, 3)), placed], 1))


def split_heads(logits: Float[Tensor, "b outputs"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of kind, colour, pattern, and of the views for each kind ``[b, kinds, views]``."""
    kind, color, pattern, view = logits.split(list(HEADS.values()), dim=1)
    return kind, color, pattern, view.unflatten(1, (len(KIND_NAMES), len(VIEWS)))


@dataclass(frozen=True)
class Verdicts:
    """What the judge sees in ``b`` images, as probabilities."""

    kind: Float[Tensor, "b kinds"]
    """In the order of ``KIND_NAMES``."""
    color: Float[Tensor, "b colors"]
    """In the order of ``COLOR_NAMES``."""
    pattern: Float[Tensor, "b patterns"]
    """In the order of ``PATTERNS``."""
    view: Float[Tensor, "b views"]
    """In the order of :data:`VIEWS`, over all kinds; without meaning for symmetric ones."""

    @property
    def front(self) -> Float[Tensor, " b"]:
        """Probability that the front is seen."""
        return self.view[:, VIEWS.index("front")]


class Judge:
    """The trained network behind a plain call."""

    def __init__(self, net: JudgeNet) -> None:
        """Freeze ``net``."""
        self.net = net.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b h w 3"], *, batch_size: int = 128) -> Verdicts:
        """Judge images in 0..1 of any square size; they are resized to 64x64.

        Raises:
            ShapeError: ``images`` is not [b, h, w, 3].
        """
        check_shape("images", images, "B H W 3")
        device = next(self.net.parameters()).device
        parts = []
        for chunk in images.split(batch_size):
            pixels = chunk.to(device, torch.float32).movedim(-1, 1)
            if pixels.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
                size = (IMAGE_SIZE, IMAGE_SIZE)
                pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            parts.append(self.net(pixels.clamp(0, 1)).cpu())
        logits = torch.cat(parts) if parts else torch.zeros(0, sum(HEADS.values()))
        kind, color, pattern, views = split_heads(logits)
        kind = kind.softmax(1)
        view = (kind[:, :, None] * views.softmax(2)).sum(1)
        return Verdicts(kind, color.softmax(1), pattern.softmax(1), view)


def save_judge(net: JudgeNet, path: Path) -> None:
    """Write the weights in half precision."""
    tensors = {n: t.half() for n, t in net.state_dict().items() if t.is_floating_point()}
    write_safetensors(path, tensors)


def load_judge(path: Path = JUDGE_WEIGHTS, device: torch.device | str = "cpu") -> Judge:
    """The shipped judge, or another one of the same size.

    Raises:
        WeightsMissing: the file is absent or of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net, again = JudgeNet(), f"studio train judge --out {shlex.quote(str(path))}"
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        missing, unexpected = net.load_state_dict(tensors, strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsMissing(
            f"The judge's weights cannot be read: '{path}' ({str(error).splitlines()[0]}). "
            f"Expected the shipped file; make it again with: {again}"
        ) from error
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise WeightsMissing(
            f"'{path}' holds another network: {len(missing)} tensors missing, {len(unexpected)} "
            f"unknown. Expected judge weights; make them again with: {again}"
        )
    return Judge(net.to(device))
