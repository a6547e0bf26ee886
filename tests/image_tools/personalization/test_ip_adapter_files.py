"""IP-Adapters in files: both layouts, every variant by its names, and what is refused."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from image_tools.diffusion.attention import attention_operations
from image_tools.diffusion.lora_apply import attach_lora
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from image_tools.personalization.ip_adapter import DecoupledAttention, ShownImages, layer_numbers
from image_tools.personalization.ip_adapter_files import (
    projector_of,
    read_ip_adapter,
    variant_of,
    write_ip_adapter,
)
from tests.image_tools.personalization.tiny_ip_adapters import (
    FACE_WIDTH,
    nested,
    random_features,
    random_lora_keys,
    tiny_ip_adapter,
)
from tests.image_tools.tiny_unets import call_unet, inputs, tiny_unet

VARIANTS = ["base", "plus", "full", "faceid", "faceid_plus"]


@pytest.fixture(scope="module")
def unet():
    return tiny_unet()


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_reads_the_same(unet, variant, ending, tmp_path):
    adapter, path = tiny_ip_adapter(unet, variant), tmp_path / f"adapter.{ending}"
    write_ip_adapter(path, adapter)
    read = read_ip_adapter(path, unet)
    assert read.adapter.image_proj.variant == variant
    assert read.lora is None
    features = random_features(variant, 2)
    assert torch.equal(read.adapter.tokens(features), adapter.tokens(features))
    assert list(read.adapter.state_dict()) == list(adapter.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_bin_files_have_the_published_parts(unet, tmp_path):
    adapter, path = tiny_ip_adapter(unet, "plus"), tmp_path / "ip-adapter-plus.bin"
    write_ip_adapter(path, adapter)
    parts = torch.load(path, weights_only=True)
    assert list(parts) == ["image_proj", "ip_adapter"]
    expected = nested(adapter)
    assert {part: list(tensors) for part, tensors in parts.items()} == {
        part: list(tensors) for part, tensors in expected.items()
    }
    assert "layers.0.0.to_kv.weight" in parts["image_proj"]
    assert "1.to_k_ip.weight" in parts["ip_adapter"]


def test_half_precision_is_read_as_asked(unet, tmp_path):
    adapter, path = tiny_ip_adapter(unet), tmp_path / "half.safetensors"
    write_ip_adapter(path, adapter, dtype=torch.float16)
    for dtype in (torch.float32, torch.bfloat16):
        read = read_ip_adapter(path, unet, dtype).adapter
        assert {tensor.dtype for tensor in read.state_dict().values()} == {dtype}


def test_portraits_have_more_tokens_of_each_face(unet):
    adapter = tiny_ip_adapter(unet, "faceid", tokens=16)
    projector = projector_of(nested(adapter)["image_proj"])
    assert projector.tokens == 16
    assert adapter.tokens(random_features("faceid", 5)).shape == (5, 16, 16)


@torch.no_grad()
def test_the_lora_of_faces_is_the_stock_one(unet, tmp_path, tiny_pipelines):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipelines["sd1"], local_files_only=True)
    pipe.unet = tiny_unet()
    adapter, features = tiny_ip_adapter(unet, "faceid"), random_features("faceid")
    parts = nested(adapter)
    parts["ip_adapter"] |= random_lora_keys(unet)
    path = tmp_path / "ip-adapter-faceid.bin"
    torch.save(parts, path)
    pipe.load_ip_adapter(parts, subfolder=None, weight_name=None, image_encoder_folder=None)
    pipe.set_ip_adapter_scale(0.7)
    latents, t, text = inputs(2)
    embeds = [features.face.expand(2, 1, FACE_WIDTH)]
    theirs = pipe.unet(
        latents, t, encoder_hidden_states=text, added_cond_kwargs={"image_embeds": embeds}
    ).sample

    own, file = tiny_unet(), read_ip_adapter(path, unet)
    attach_lora({"unet": own}, file.lora, name="face")
    shown = ShownImages(file.adapter.tokens(features).expand(2, 1, -1, -1), torch.full((2,), 0.7))
    operation = DecoupledAttention(file.adapter, layer_numbers(own), shown)
    with attention_operations(own, [operation]):
        ours = call_unet(own, 2)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def save(path, tensors) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def test_files_that_do_not_fit_are_refused(unet, tmp_path):
    path = tmp_path / "adapter.safetensors"
    with pytest.raises(WeightsMissing, match="no file"):
        read_ip_adapter(path, unet)
    path.write_bytes(b"not a file of tensors")
    with pytest.raises(WeightsMissing, match="cannot be read"):
        read_ip_adapter(path, unet)
    save(path, {"unet.weight": torch.ones(1)})
    with pytest.raises(UnsupportedModel, match=r"holds no IP-Adapter \(unet.weight"):
        read_ip_adapter(path, unet)
    tensors = tiny_ip_adapter(unet).state_dict()
    save(path, {**tensors, "ip_adapter.1.to_k_ip.weight": torch.ones(3, 5)})
    with pytest.raises(
        UnsupportedModel, match=r"1 tensors: ip_adapter.1.to_k_ip.weight \(\(3, 5\)"
    ):
        read_ip_adapter(path, unet)
    tensors.pop("ip_adapter.3.to_v_ip.weight")
    save(path, tensors)
    with pytest.raises(UnsupportedModel, match=r"to_v_ip.weight \(absent"):
        read_ip_adapter(path, unet)
    with pytest.raises(UnsupportedModel, match="No projector of an IP-Adapter among 1 tensors"):
        variant_of({"something": torch.ones(1)})


def test_structure_belongs_to_one_variant(unet, tmp_path):
    for variant in ("faceid", "faceid_plus"):
        write_ip_adapter(tmp_path / f"{variant}.bin", tiny_ip_adapter(unet, variant))
    read = read_ip_adapter(tmp_path / "faceid_plus.bin", unet, structure=0.5)
    assert read.adapter.image_proj.structure == 0.5
    with pytest.raises(
        UnsupportedModel, match=r"structure is 0.5 with an adapter that is a faceid"
    ):
        read_ip_adapter(tmp_path / "faceid.bin", unet, structure=0.5)


class Evil:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return print, ("code ran",)


def test_pickles_with_more_than_tensors_are_not_opened(unet, tmp_path, capsys):
    path = tmp_path / "evil.bin"
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(UnsafeWeights, match="could run code"):
        read_ip_adapter(path, unet)
    assert "code ran" not in capsys.readouterr().out
