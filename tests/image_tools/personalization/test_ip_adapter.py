"""IP-Adapter's modules: equal to diffusers' own, and their names to the public checkpoints'."""

from __future__ import annotations

import copy

import pytest
import torch

from image_tools.diffusion.attention import AttentionHub, attention_operations
from image_tools.personalization.ip_adapter import (
    DecoupledAttention,
    IPAdapter,
    PlusProjector,
    ShownImages,
    layer_numbers,
    layer_widths,
    new_ip_adapter,
)
from image_tools.personalization.ip_adapter_configs import BlockScaleConfig
from image_tools.personalization.ip_adapter_prior import block_scales
from image_tools.personalization.perceiver import PerceiverSettings
from tests.image_tools.personalization.tiny_ip_adapters import (
    nested,
    random_features,
    tiny_ip_adapter,
)
from tests.image_tools.tiny_unets import call_unet, inputs, tiny_unet

ROWS, SCALE = 2, 0.7
STOCK = 1e-5


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@torch.no_grad()
def stock_output(unet, adapter, features, *, structure=None, scale=SCALE):
    """The UNet's output with diffusers' own IP-Adapter; every row sees all images."""
    theirs = copy.deepcopy(unet)
    theirs._load_ip_adapter_weights([nested(adapter)], low_cpu_mem_usage=False)
    for processor in theirs.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = [scale]
    projector = theirs.encoder_hid_proj.image_projection_layers[0]
    rows = (ROWS, -1)
    if adapter.image_proj.variant.startswith("faceid"):
        embeds = features.face.expand(ROWS, *features.face.shape)
        if features.clip is not None:
            clip = features.clip[None].expand(ROWS, *features.clip.shape)
            projector.clip_embeds = clip.reshape(1, *clip.flatten(0, 1).shape)
            projector.shortcut = structure is not None
            projector.shortcut_scale = structure
    else:
        embeds = features.clip.expand(*rows, *features.clip.shape[1:])
    latents, t, text = inputs(ROWS)
    added = {"image_embeds": [embeds]}
    return theirs(latents, t, encoder_hidden_states=text, added_cond_kwargs=added).sample


def shown(adapter, features, *, scale: float = SCALE, masks=None) -> ShownImages:
    tokens = adapter.tokens(features).expand(ROWS, -1, -1, -1)
    return ShownImages(tokens, torch.full((ROWS,), scale), masks)


@torch.no_grad()
def our_output(unet, adapter, images: ShownImages, layer_scales=None):
    operation = DecoupledAttention(adapter, layer_numbers(unet), images, layer_scales)
    with attention_operations(unet, [operation]):
        return call_unet(unet, ROWS)


@pytest.mark.parametrize("variant", ["base", "plus", "full", "faceid"])
@pytest.mark.parametrize("images", [1, 3])
def test_output_is_that_of_the_stock_adapter(unet, variant, images):
    adapter, features = tiny_ip_adapter(unet, variant), random_features(variant, images)
    ours = our_output(unet, adapter, shown(adapter, features))
    theirs = stock_output(unet, adapter, features)
    torch.testing.assert_close(ours, theirs, atol=STOCK, rtol=STOCK)
    assert float((ours - call_unet(unet, ROWS)).abs().max()) > 100 * STOCK


@pytest.mark.parametrize("structure", [None, 0.4], ids=["version 1", "version 2"])
def test_faces_with_structure_are_the_stock_ones(unet, structure):
    adapter, features = tiny_ip_adapter(unet, "faceid_plus"), random_features("faceid_plus")
    adapter.image_proj.structure = structure
    ours = our_output(unet, adapter, shown(adapter, features))
    theirs = stock_output(unet, adapter, features, structure=structure)
    torch.testing.assert_close(ours, theirs, atol=STOCK, rtol=STOCK)


def test_a_new_adapter_looks_with_the_text_s_own_keys_and_values(unet):
    generator = torch.Generator().manual_seed(0)
    adapter = new_ip_adapter(unet, "base", image_width=8, generator=generator)
    for layer, number in layer_numbers(unet).items():
        attention, own = unet.get_submodule(layer), adapter.ip_adapter[number]
        assert torch.equal(own.to_k_ip.weight, attention.to_k.weight)
        assert torch.equal(own.to_v_ip.weight, attention.to_v.weight)


def test_layers_have_the_numbers_of_the_public_files(unet):
    order = [name.removesuffix(".processor") for name in unet.attn_processors]
    assert layer_numbers(unet) == {
        name: str(index) for index, name in enumerate(order) if name.endswith("attn2")
    }


def test_a_mask_of_everything_is_none_and_a_mask_of_nothing_is_off(unet):
    adapter, features = tiny_ip_adapter(unet), random_features("base")
    plain, everywhere = call_unet(unet, ROWS), our_output(unet, adapter, shown(adapter, features))
    for value, expected in ((1.0, everywhere), (0.0, plain)):
        masks = torch.full((1, 16, 16), value)
        masked = our_output(unet, adapter, shown(adapter, features, masks=masks))
        torch.testing.assert_close(masked, expected, atol=2e-6, rtol=1e-6)


def test_each_image_acts_where_its_mask_is_white(unet):
    layer = next(layer for layer in AttentionHub(unet).layers if layer.is_cross)
    attention, adapter = unet.get_submodule(layer.name), tiny_ip_adapter(unet)
    masks = torch.zeros(2, 16, 16)
    masks[0, :, :8], masks[1, :, 8:] = 1.0, 1.0
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(ROWS, 64, attention.query_dim, generator=generator)
    text = inputs(ROWS)[2]

    def attended(features, masks=None):
        images = shown(adapter, features, masks=masks)
        operation = DecoupledAttention(adapter, layer_numbers(unet), images)
        with attention_operations(unet, [operation]) as hub:
            hub.latent_size = (8, 8)
            return attention(hidden, text).unflatten(1, (8, 8))

    both = random_features("base", 2)
    halves = attended(both, masks)
    for image, columns in ((0, slice(0, 4)), (1, slice(4, 8))):
        alone = attended(both.select(torch.tensor([image])))
        torch.testing.assert_close(halves[:, :, columns], alone[:, :, columns])


def test_blocks_that_are_not_named_are_left_alone(unet):
    scales = block_scales(unet, [BlockScaleConfig("up.1", (0.0, 2.0))])
    acting = {name for name, scale in scales.items() if scale}
    assert acting == {"up_blocks.1.attentions.1.transformer_blocks.0.attn2"}
    assert set(scales) == set(layer_numbers(unet))
    assert set(block_scales(unet, []).values()) == {1.0}
    adapter, features = tiny_ip_adapter(unet), random_features("base")
    images = shown(adapter, features)
    some = our_output(unet, adapter, images, scales)
    assert not torch.equal(some, our_output(unet, adapter, images))
    assert not torch.equal(some, call_unet(unet, ROWS))
    nothing = dict.fromkeys(scales, 0.0)
    assert torch.equal(our_output(unet, adapter, images, nothing), call_unet(unet, ROWS))


def test_block_scales_are_those_of_the_stock_dictionary(tiny_pipelines):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd1"], local_files_only=True)
    plain = copy.deepcopy(pipe.unet)
    adapter, features = tiny_ip_adapter(plain), random_features("base")
    pipe.load_ip_adapter(
        nested(adapter), subfolder=None, weight_name=None, image_encoder_folder=None
    )
    pipe.set_ip_adapter_scale({"up": {"block_1": [0.0, SCALE]}, "down": {"block_0": 0.5}})
    latents, t, text = inputs(ROWS)
    embeds = features.clip.expand(ROWS, 1, -1)
    with torch.no_grad():
        theirs = pipe.unet(
            latents, t, encoder_hidden_states=text, added_cond_kwargs={"image_embeds": [embeds]}
        ).sample
    blocks = [BlockScaleConfig("up.1", (0.0, SCALE)), BlockScaleConfig("down.0", (0.5,))]
    images = shown(adapter, features, scale=1.0)
    ours = our_output(plain, adapter, images, block_scales(plain, blocks))
    torch.testing.assert_close(ours, theirs, atol=STOCK, rtol=STOCK)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([BlockScaleConfig("down.7")], "no attention to text - expected one of down.0, mid, up.1"),
        ([BlockScaleConfig("up.1", (1.0, 0.0, 1.0))], "3 entries for 2 transformers"),
    ],
)
def test_blocks_that_the_denoiser_does_not_have_are_refused(unet, blocks, message):
    from image_tools.errors import UnsupportedModel

    with pytest.raises(UnsupportedModel, match=message):
        block_scales(unet, blocks)


PUBLIC = {
    "sd15": (
        {"cross_attention_dim": 768, "block_out_channels": (320, 640, 1280, 1280)},
        {"1": (320, 768), "31": (1280, 768), "25": (320, 768)},
        16,
    ),
    "sdxl": (
        {
            "cross_attention_dim": 2048,
            "block_out_channels": (320, 640, 1280),
            "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            "up_block_types": (*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            "transformer_layers_per_block": (1, 2, 10),
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
        },
        {"1": (640, 2048), "139": (1280, 2048), "9": (1280, 2048)},
        70,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_public_denoisers_have_the_layers_of_the_public_files(name):
    from diffusers import UNet2DConditionModel

    settings, shapes, count = PUBLIC[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**settings)
        width = settings["cross_attention_dim"]
        projector = PlusProjector(PerceiverSettings(1280, width, width))
        adapter = IPAdapter(projector, layer_widths(unet))
    assert list(adapter.ip_adapter) == [str(2 * index + 1) for index in range(count)]
    for number, shape in shapes.items():
        for part in ("k", "v"):
            key = f"ip_adapter.{number}.to_{part}_ip.weight"
            assert tuple(adapter.state_dict()[key].shape) == shape
