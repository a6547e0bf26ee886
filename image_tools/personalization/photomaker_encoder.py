"""PhotoMaker's ID encoders (arXiv 2312.04461): photos of a person to rows of text.

    v1    id = W1 pool(CLIP(x)) | W2 pool(CLIP(x))              one row for each photo
    v2    q = LN(MLP(face)),  id = q + Perceiver(q, CLIP(x))    two rows for each photo
    fuse  y = mlp1([h | id]) + h,  LN(mlp2(y) + y),  mlp = LN, Linear, GELU, Linear

``h`` is the state of the class word's token in the prompt, of both text encoders side by side; what
fuse makes of it takes its place. CLIP is ViT-L/14 as the authors finetuned it, in the same file.
The Perceiver reads CLIP's last hidden states; ``face`` is an ArcFace embedding, not normalised.

    encoder = new_id_encoder(IdEncoderShape())
    identity = encoder.identify(images, None)                         # [n, 1, 2048]
    tokens = fuse_rows(encoder.fuse_module, text.tokens, range(4, 4 + n), identity.flatten(0, 1))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from image_tools.errors import UnsupportedModel
from image_tools.personalization.perceiver import Perceiver, PerceiverSettings, draw_weights
from image_tools.vision.clip_images import clip_pixels
from renderers.errors import ShapeError, StudioError

__all__ = [
    "FaceIdEncoder",
    "FaceShape",
    "FuseModule",
    "IdEncoder",
    "IdEncoderShape",
    "encoder_from_clip",
    "fuse_rows",
    "new_id_encoder",
]


# Numbers of a head in ViT-L/14, and in the perceiver.
CLIP_HEAD, PERCEIVER_HEAD = 64, 128


@dataclass(frozen=True)
class FaceShape:
    """Sizes of what v2 has beside v1; the defaults are those of photomaker-v2.bin."""

    width: int = 512
    """Numbers of a face embedding."""
    hidden: int = 2048
    """Inner width of the projection of faces."""
    tokens: int = 2
    """Rows for each photo."""
    depth: int = 4
    """Layers of the perceiver."""


@dataclass(frozen=True)
class IdEncoderShape:
    """Sizes of an ID encoder; the defaults are those of the public files."""

    image_size: int = 224
    patch_size: int = 14
    hidden: int = 1024
    """Width of CLIP."""
    intermediate: int = 4096
    """Inner width of its MLPs."""
    layers: int = 24
    projections: tuple[int, int] = (768, 1280)
    """Outputs of the two projections; together the width of the denoiser's text."""
    face: FaceShape | None = None
    """Given for v2."""

    @property
    def width(self) -> int:
        """Width of the denoiser's text."""
        return sum(self.projections)

    @property
    def heads(self) -> int:
        """Heads of CLIP's attention, which no tensor tells."""
        return max(1, self.hidden // CLIP_HEAD)

    @property
    def face_heads(self) -> int:
        """Heads of the perceiver's attention, whose inside is as wide as the text."""
        return max(1, self.width // PERCEIVER_HEAD)


class _Mlp(nn.Module):
    """Norm, two layers, no way around them."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, width)
        self.fc2 = nn.Linear(width, width)

    def forward(self, rows: Float[Tensor, "n inputs"]) -> Float[Tensor, "n width"]:
        """Rows one by one."""
        return self.fc2(nn.functional.gelu(self.fc1(self.layernorm(rows))))


class FuseModule(nn.Module):
    """Class word and identity to one row."""

    def __init__(self, width: int) -> None:
        """Build it for text of a width."""
        super().__init__()
        self.mlp1 = _Mlp(2 * width, width)
        self.mlp2 = _Mlp(width, width)
        self.layer_norm = nn.LayerNorm(width)

    def forward(
        self, states: Float[Tensor, "n width"], identity: Float[Tensor, "n width"]
    ) -> Float[Tensor, "n width"]:
        """What takes the place of the class word's states."""
        mixed = self.mlp1(torch.cat([states, identity], dim=-1)) + states
        return self.layer_norm(self.mlp2(mixed) + mixed)


class _FaceReader(nn.Module):
    """v2's Q-former: queries from a face embedding that look at CLIP's patches."""

    def __init__(self, shape: IdEncoderShape, face: FaceShape) -> None:
        super().__init__()
        self.tokens = face.tokens
        self.token_proj = nn.Sequential(
            nn.Linear(face.width, face.hidden),
            nn.GELU(),
            nn.Linear(face.hidden, face.tokens * shape.width),
        )
        self.token_norm = nn.LayerNorm(shape.width)
        self.perceiver_resampler = Perceiver(
            PerceiverSettings(
                image_width=shape.hidden,
                width=shape.width,
                text_width=shape.width,
                depth=face.depth,
                heads=shape.face_heads,
                head_width=shape.width // shape.face_heads,
            )
        )

    def forward(
        self, faces: Float[Tensor, "n face"], patches: Float[Tensor, "n patches hidden"]
    ) -> Float[Tensor, "n tokens width"]:
        """Rows of each photo."""
        queries = self.token_norm(self.token_proj(faces).unflatten(1, (self.tokens, -1)))
        return queries + self.perceiver_resampler(queries, patches)


class IdEncoder(nn.Module):
    """PhotoMaker v1."""

    version = "v1"
    tokens = 1
    """Rows for each photo."""

    def __init__(self, shape: IdEncoderShape) -> None:
        """Build it with random weights, or none on the meta device."""
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        super().__init__()
        self.shape = shape
        clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=shape.image_size,
                patch_size=shape.patch_size,
                hidden_size=shape.hidden,
                intermediate_size=shape.intermediate,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                projection_dim=shape.projections[0],
            )
        )
        self.vision_model, self.visual_projection = clip.vision_model, clip.visual_projection
        self.visual_projection_2 = nn.Linear(shape.hidden, shape.projections[1], bias=False)
        self.fuse_module = FuseModule(shape.width)

    def identify(
        self, images: Float[Tensor, "n h w 3"], faces: Float[Tensor, "n face"] | None
    ) -> Float[Tensor, "n tokens width"]:
        """Rows of each photo; v1 looks at nothing but the photos.

        Args:
            images: of one person, in 0..1.
            faces: embeddings of the faces in them, which v2 needs.
        """
        pooled = self.vision_model(self._pixels(images)).pooler_output
        rows = torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], dim=-1)
        return rows[:, None]

    def restore_places(self) -> None:
        """Number CLIP's patches, which files do not hold, after building on the meta device."""
        embeddings = self.vision_model.embeddings
        count = embeddings.position_embedding.num_embeddings
        device = embeddings.position_embedding.weight.device
        places = torch.arange(count, device=device)[None]
        embeddings.register_buffer("position_ids", places, persistent=False)

    def _pixels(self, images: Float[Tensor, "n h w 3"]) -> Tensor:
        """Images as CLIP takes them.

        Raises:
            StudioError: there are none.
        """
        if not len(images):
            raise StudioError(
                "PhotoMaker got no photo - expected one to four of the person. Give their paths as "
                "images."
            )
        weight = self.visual_projection_2.weight
        return clip_pixels(images.to(weight.device), self.shape.image_size).to(weight)


class FaceIdEncoder(IdEncoder):
    """PhotoMaker v2. Both projections are in its files, and nothing reads them."""

    version = "v2"

    def __init__(self, shape: IdEncoderShape, face: FaceShape) -> None:
        """Build it."""
        super().__init__(replace(shape, face=face))
        self.tokens = face.tokens
        self.qformer_perceiver = _FaceReader(shape, face)

    def identify(
        self, images: Float[Tensor, "n h w 3"], faces: Float[Tensor, "n face"] | None
    ) -> Float[Tensor, "n tokens width"]:
        """Rows of each photo.

        Raises:
            StudioError: there is no embedding for each photo.
            ShapeError: embeddings are of another width.
        """
        wanted = self.qformer_perceiver.token_proj[0].in_features
        if faces is None or len(faces) != len(images):
            found = "none" if faces is None else f"{len(faces)}"
            raise StudioError(
                f"PhotoMaker v2 got {len(images)} photos and {found} of the face embeddings - "
                "expected one for each photo. Give embeddings, or use photomaker-v1."
            )
        if faces.shape[1] != wanted:
            raise ShapeError(
                f"Face embeddings have {faces.shape[1]} numbers - expected {wanted}, as the face "
                "recogniser has them that this PhotoMaker was trained with. Public weights want "
                "those of insightface's buffalo_l."
            )
        pixels = self._pixels(images)
        patches = self.vision_model(pixels).last_hidden_state
        return self.qformer_perceiver(faces.to(pixels), patches)


def new_id_encoder(shape: IdEncoderShape) -> IdEncoder:
    """An untrained encoder: v2 where the shape has a face, otherwise v1."""
    return IdEncoder(shape) if shape.face is None else FaceIdEncoder(shape, shape.face)


def encoder_from_clip(
    clip: nn.Module, *, text_width: int, face: FaceShape | None = None, generator: torch.Generator
) -> IdEncoder:
    """An ID encoder that begins as a CLIP vision model; the rest is drawn.

    Args:
        clip: a transformers CLIPVisionModelWithProjection, ViT-L/14 for the public design.
        text_width: width of the text that the denoiser reads, 2048 for SDXL.
        face: given for v2.
        generator: draws what CLIP does not have.

    Raises:
        UnsupportedModel: another design of CLIP, or one whose projection fills the text's width.
    """
    config = clip.config
    shape = IdEncoderShape(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        layers=config.num_hidden_layers,
        projections=(config.projection_dim, text_width - config.projection_dim),
        face=face,
    )
    found = (config.num_attention_heads, config.hidden_act)
    if found != (shape.heads, "quick_gelu") or shape.projections[1] < 1:
        raise UnsupportedModel(
            f"The CLIP vision model has {found[0]} heads, {found[1]}, and a projection of "
            f"{config.projection_dim} for text of {text_width} - expected {shape.heads} heads (64 "
            "numbers each), quick_gelu, and a narrower projection. Use OpenAI's ViT-L/14."
        )
    with torch.random.fork_rng(devices=[]):  # numbers that are replaced below
        encoder = new_id_encoder(shape)
    for name in ("vision_model", "visual_projection"):
        encoder.get_submodule(name).load_state_dict(clip.get_submodule(name).state_dict())
    for name, part in encoder.named_children():
        if name not in ("vision_model", "visual_projection"):
            draw_weights(part, generator)
    return encoder.eval().requires_grad_(False)


def fuse_rows(
    fuse: FuseModule,
    tokens: Float[Tensor, "1 length width"],
    span: range,
    identity: Float[Tensor, "n width"],
    *,
    weights: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "1 length width"]:
    """A prompt's states with the rows of ``span`` fused with the identity; differentiable.

    Args:
        fuse: makes the new rows.
        tokens: states of one prompt.
        span: where the class word stands, once for each row of the identity.
        identity: as of ``IdEncoder.identify``.
        weights: factors of the new rows (prompt weighting); None for ones.
    """
    index = torch.arange(span.start, span.stop, device=tokens.device)
    own = fuse.layer_norm.weight
    fused = fuse(tokens[0, index].to(own), identity.to(own))
    if weights is not None:
        fused = fused * weights.to(fused)[:, None]
    return tokens.index_copy(1, index, fused[None].to(tokens))
