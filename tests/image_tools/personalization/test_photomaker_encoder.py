"""PhotoMaker's ID encoders: equations against loops, sizes of the public files, refusals."""

from __future__ import annotations

import pytest
import torch

from image_tools.personalization.photomaker_encoder import (
    FaceShape,
    IdEncoderShape,
    fuse_rows,
    new_id_encoder,
)
from image_tools.vision.clip_images import clip_pixels
from renderers.errors import ShapeError, StudioError
from tests.image_tools.personalization.tiny_photomakers import faces_of, portraits, tiny_encoder


@pytest.fixture(scope="module")
def encoders():
    return {version: tiny_encoder(version) for version in ("v1", "v2")}


def norm(vector, weight, bias):
    """Layer norm of one vector, number by number."""
    mean = sum(vector) / len(vector)
    variance = sum((x - mean) ** 2 for x in vector) / len(vector)
    return [
        (x - mean) / (variance + 1e-5) ** 0.5 * w + b
        for x, w, b in zip(vector, weight, bias, strict=True)
    ]


def linear(vector, weight, bias):
    return [
        sum(w * x for w, x in zip(row, vector, strict=True)) + b
        for row, b in zip(weight, bias, strict=True)
    ]


def gelu(vector):
    return [0.5 * x * (1.0 + torch.erf(torch.tensor(x / 2**0.5)).item()) for x in vector]


def mlp(vector, numbers, name):
    def part(layer):
        return numbers[f"{name}.{layer}.weight"], numbers[f"{name}.{layer}.bias"]

    hidden = gelu(linear(norm(vector, *part("layernorm")), *part("fc1")))
    return linear(hidden, *part("fc2"))


def test_fuse_is_its_equation(encoders):
    """mlp1 of both with the text added, mlp2 with its input added, and a norm."""
    fuse = encoders["v1"].fuse_module
    generator = torch.Generator().manual_seed(1)
    states, identity = (torch.randn(2, 32, generator=generator) for _ in range(2))
    numbers = {name: tensor.tolist() for name, tensor in fuse.state_dict().items()}
    found = fuse(states, identity)
    for h, e, y in zip(states.tolist(), identity.tolist(), found, strict=True):
        mixed = [a + b for a, b in zip(mlp(h + e, numbers, "mlp1"), h, strict=True)]
        mixed = [a + b for a, b in zip(mlp(mixed, numbers, "mlp2"), mixed, strict=True)]
        wanted = norm(mixed, numbers["layer_norm.weight"], numbers["layer_norm.bias"])
        torch.testing.assert_close(y, torch.tensor(wanted), atol=1e-4, rtol=1e-5)


def test_rows_of_the_class_word_alone_change(encoders):
    fuse, generator = encoders["v1"].fuse_module, torch.Generator().manual_seed(2)
    tokens = torch.randn(1, 9, 32, generator=generator)
    identity = torch.randn(3, 32, generator=generator)
    fused = fuse_rows(fuse, tokens, range(4, 7), identity)
    assert torch.equal(fused[0, 4:7], fuse(tokens[0, 4:7], identity))
    others = [0, 1, 2, 3, 7, 8]
    assert torch.equal(fused[0, others], tokens[0, others])


def test_a_photo_is_both_projections_of_what_clip_pools(encoders):
    encoder, images = encoders["v1"], portraits(3)
    rows = encoder.identify(images, None)
    pooled = encoder.vision_model(clip_pixels(images, 8)).pooler_output
    wanted = torch.cat(
        [
            pooled @ encoder.visual_projection.weight.T,
            pooled @ encoder.visual_projection_2.weight.T,
        ],
        dim=1,
    )
    assert rows.shape == (3, 1, 32)
    torch.testing.assert_close(rows[:, 0], wanted)
    one_by_one = torch.cat([encoder.identify(image[None], None) for image in images])
    torch.testing.assert_close(rows, one_by_one, atol=1e-5, rtol=1e-5)


def test_faces_ask_clip_for_the_rest(encoders):
    """v2: the projected face, and what it reads from the patches added."""
    encoder, images, faces = encoders["v2"], portraits(2), faces_of(2)
    rows = encoder.identify(images, faces)
    assert rows.shape == (2, 2, 32)
    reader = encoder.qformer_perceiver
    queries = reader.token_norm(reader.token_proj(faces).reshape(2, 2, 32))
    patches = encoder.vision_model(clip_pixels(images, 8)).last_hidden_state
    read = reader.perceiver_resampler(queries, patches)
    torch.testing.assert_close(rows, queries + read)
    assert not torch.allclose(rows, encoder.identify(images, faces.flip(0)))
    assert not torch.allclose(rows, encoder.identify(images.flip(0), faces))


PUBLIC = {
    "vision_model.embeddings.class_embedding": (1024,),
    "vision_model.embeddings.patch_embedding.weight": (1024, 3, 14, 14),
    "vision_model.embeddings.position_embedding.weight": (257, 1024),
    "vision_model.pre_layrnorm.weight": (1024,),
    "vision_model.encoder.layers.23.self_attn.q_proj.bias": (1024,),
    "vision_model.encoder.layers.23.mlp.fc1.weight": (4096, 1024),
    "vision_model.post_layernorm.bias": (1024,),
    "visual_projection.weight": (768, 1024),
    "visual_projection_2.weight": (1280, 1024),
    "fuse_module.mlp1.layernorm.weight": (4096,),
    "fuse_module.mlp1.fc1.weight": (2048, 4096),
    "fuse_module.mlp1.fc2.bias": (2048,),
    "fuse_module.mlp2.layernorm.bias": (2048,),
    "fuse_module.mlp2.fc1.weight": (2048, 2048),
    "fuse_module.mlp2.fc2.weight": (2048, 2048),
    "fuse_module.layer_norm.weight": (2048,),
}
PUBLIC_V2 = {
    "qformer_perceiver.token_proj.0.weight": (2048, 512),
    "qformer_perceiver.token_proj.2.weight": (4096, 2048),
    "qformer_perceiver.token_proj.2.bias": (4096,),
    "qformer_perceiver.token_norm.weight": (2048,),
    "qformer_perceiver.perceiver_resampler.proj_in.weight": (2048, 1024),
    "qformer_perceiver.perceiver_resampler.proj_out.bias": (2048,),
    "qformer_perceiver.perceiver_resampler.norm_out.weight": (2048,),
    "qformer_perceiver.perceiver_resampler.layers.3.0.norm1.weight": (2048,),
    "qformer_perceiver.perceiver_resampler.layers.3.0.norm2.bias": (2048,),
    "qformer_perceiver.perceiver_resampler.layers.3.0.to_q.weight": (2048, 2048),
    "qformer_perceiver.perceiver_resampler.layers.3.0.to_kv.weight": (4096, 2048),
    "qformer_perceiver.perceiver_resampler.layers.3.0.to_out.weight": (2048, 2048),
    "qformer_perceiver.perceiver_resampler.layers.3.1.0.weight": (2048,),
    "qformer_perceiver.perceiver_resampler.layers.3.1.1.weight": (8192, 2048),
    "qformer_perceiver.perceiver_resampler.layers.3.1.3.weight": (2048, 8192),
}
# 24 layers of 16 tensors, 8 around them, the second projection, 14 of fuse; in v2 4 before the
# perceiver's norm and 2 of it, 6 around its 4 layers of 11.
COUNTS = {"v1": 24 * 16 + 8 + 1 + 14, "v2": 24 * 16 + 8 + 1 + 14 + 6 + 6 + 4 * 11}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_full_size_encoders_have_the_tensors_of_the_public_files(version):
    with torch.device("meta"):
        face = FaceShape() if version == "v2" else None
        tensors = new_id_encoder(IdEncoderShape(face=face)).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wanted = PUBLIC | (PUBLIC_V2 if version == "v2" else {})
    assert {name: shapes.get(name) for name in wanted} == wanted
    assert len(shapes) == COUNTS[version]


@pytest.mark.wrong_shapes
def test_what_is_missing_is_named(encoders):
    images = portraits(2)
    with pytest.raises(StudioError, match="got no photo"):
        encoders["v1"].identify(images[:0], None)
    with pytest.raises(StudioError, match="v2 got 2 photos and none of the face embeddings"):
        encoders["v2"].identify(images, None)
    with pytest.raises(StudioError, match="v2 got 2 photos and 3 of the face"):
        encoders["v2"].identify(images, faces_of(3))
    with pytest.raises(ShapeError, match="have 5 numbers - expected 8"):
        encoders["v2"].identify(images, faces_of(2)[:, :5])
