"""Each memory switch does what it says; none but tiling changes the result."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from image_tools.configs import DiffusersPriorConfig, PriorMemoryConfig, SingleFilePriorConfig
from image_tools.control.self_guidance import Reference, SelfGuidedPrior
from image_tools.control.self_guidance_configs import MoveConfig, SelfGuidanceConfig
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.memory import prior_device, vae_dtype
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.editing.editing_configs import EditedPromptConfig, PromptToPromptConfig
from image_tools.editing.prompt_to_prompt import PromptToPromptPrior
from image_tools.editing.word_maps import word_maps
from renderers.errors import BackendMissing
from tests.tiny_models import write_single_file

CPU = torch.device("cpu")
SIZE = 16


def _prior(folder: Path, **memory) -> DiffusionPrior:
    config = DiffusersPriorConfig(model=str(folder), memory=PriorMemoryConfig(**memory))
    return load_prior(config, CPU)


def _images(n: int = 3) -> torch.Tensor:
    return torch.rand(n, SIZE, SIZE, 3, generator=torch.Generator().manual_seed(0))


def _encoder_shapes(prior: DiffusionPrior) -> list[tuple[int, ...]]:
    """Shapes that the VAE's encoder sees for a batch of three images."""
    shapes: list[tuple[int, ...]] = []
    hook = prior.vae.encoder.register_forward_pre_hook(
        lambda _, args: shapes.append(tuple(args[0].shape))
    )
    with torch.no_grad():
        prior.encode_images(_images())
    hook.remove()
    return shapes


def _kept_bytes(prior: DiffusionPrior) -> int:
    """Bytes that autograd keeps between the encoder's forward and backward passes."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        prior.encode_images(_images().requires_grad_())
    return sum(sizes.values())


def test_a_prior_that_was_let_go_of_is_gone_before_the_next_one_is_loaded(tiny_pipelines):
    """Tools and priors know each other, and two large models may not fit side by side."""

    def let_go() -> weakref.ref:
        prior = _prior(tiny_pipelines["sd1"])
        prior.fingerprint_parts["tool"] = lambda: prior.unet.__class__.__name__
        return weakref.ref(prior.unet)

    gc.disable()
    try:
        unet = let_go()
        assert unet() is not None
        _prior(tiny_pipelines["sd1"])
        assert unet() is None
    finally:
        gc.enable()


def test_slicing_encodes_one_image_at_a_time(tiny_pipelines):
    plain = _prior(tiny_pipelines["sd1"])
    sliced = _prior(tiny_pipelines["sd1"], vae_slicing=True)
    assert _encoder_shapes(plain) == [(3, 3, SIZE, SIZE)]
    assert _encoder_shapes(sliced) == [(1, 3, SIZE, SIZE)] * 3
    with torch.no_grad():
        latents = plain.encode_images(_images())
        torch.testing.assert_close(sliced.encode_images(_images()), latents, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            sliced.decode_latents(latents), plain.decode_latents(latents), atol=1e-6, rtol=1e-5
        )


def test_slicing_keeps_as_much_for_a_gradient(tiny_pipelines):
    """Said in the setting's description: only passes without gradient get cheaper."""
    plain, sliced = (_prior(tiny_pipelines["sd1"], vae_slicing=flag) for flag in (False, True))
    assert _kept_bytes(sliced) > 0.9 * _kept_bytes(plain)


def test_tiling_begins_at_the_size_the_prior_uses(tiny_pipelines):
    """The stock tile is as large as the image, so the stock switch alone does nothing here."""
    tiled = _prior(tiny_pipelines["sd1"], vae_tiling=True)
    shapes = _encoder_shapes(tiled)
    assert len(shapes) == 9  # three by three, overlapping
    assert max(shape[-1] for shape in shapes) == SIZE // 2
    with torch.no_grad():
        latents = tiled.encode_images(_images())
        plain = _prior(tiny_pipelines["sd1"]).encode_images(_images())
        assert tiled.decode_latents(latents).shape == (3, SIZE, SIZE, 3)
    assert latents.shape == plain.shape
    assert not torch.allclose(latents, plain), "said in the setting's description"


def test_tiles_let_gradients_through(tiny_pipelines):
    images = _images().requires_grad_()
    _prior(tiny_pipelines["sd1"], vae_tiling=True).encode_images(images).sum().backward()
    assert images.grad.abs().flatten(1).sum(dim=1).min() > 0


def test_checkpointing_keeps_less_and_gives_the_same_gradient(tiny_pipelines):
    plain = _prior(tiny_pipelines["sd1"])
    saving = _prior(tiny_pipelines["sd1"], vae_checkpointing=True)
    assert _kept_bytes(saving) < 0.5 * _kept_bytes(plain)
    gradients = []
    for prior in (plain, saving):
        images = _images().requires_grad_()
        prior.encode_images(images).square().sum().backward()
        gradients.append(images.grad)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_attention_slicing_changes_the_processors_and_not_the_prediction(tiny_pipelines):
    plain = _prior(tiny_pipelines["sd1"])
    sliced = _prior(tiny_pipelines["sd1"], attention_slicing=True)
    names = {type(p).__name__ for p in sliced.unet.attn_processors.values()}
    assert names == {"SlicedAttnProcessor"}
    cond = plain.encode_prompt(["a duck"])
    latents, t = torch.ones(1, 4, 8, 8), torch.tensor([300])
    with torch.no_grad():
        torch.testing.assert_close(
            sliced.predict_noise(latents, t, cond), plain.predict_noise(latents, t, cond)
        )


@pytest.mark.parametrize(
    ("memory", "settings", "dtype", "expected"),
    [
        ({}, {"force_upcast": True}, torch.float16, torch.float32),
        ({}, {}, torch.float16, torch.float32),
        ({}, {"force_upcast": False}, torch.float16, torch.float16),
        ({}, {"force_upcast": True}, torch.bfloat16, torch.bfloat16),
        ({"vae_dtype": "bfloat16"}, {}, torch.float16, torch.bfloat16),
    ],
)
def test_image_encoder_is_kept_from_overflowing(memory, settings, dtype, expected):
    assert vae_dtype(PriorMemoryConfig(**memory), settings, dtype) == expected


def test_half_precision_halves_the_weights(tiny_pipelines):
    def weight_bytes(module: nn.Module) -> int:
        return sum(parameter.nbytes for parameter in module.parameters())

    full = _prior(tiny_pipelines["sd1"])
    half = _prior(tiny_pipelines["sd1"], dtype="float16", vae_dtype="float16")
    assert weight_bytes(half.unet) * 2 == weight_bytes(full.unet)
    assert weight_bytes(half.vae) * 2 == weight_bytes(full.vae)


@pytest.mark.parametrize("policy", ["keep", "drop", "cpu"])
def test_single_file_text_encoder_obeys_its_policy(tiny_pipelines, tmp_path, policy):
    path = write_single_file(tiny_pipelines["sd1"], tmp_path / "model.safetensors")
    settings = shutil.copytree(
        tiny_pipelines["sd1"], tmp_path / "settings", ignore=shutil.ignore_patterns("*.safetensors")
    )
    memory = PriorMemoryConfig(text_encoder=policy, dtype="bfloat16")
    single = load_prior(
        SingleFilePriorConfig(path=str(path), config=str(settings), memory=memory), CPU
    )
    words = single.text.tokenizers[0](["a duck"]).input_ids
    assert not single.text.is_loaded
    tokens = single.encode_prompt(["a duck"]).tokens
    assert single.text.is_loaded is (policy != "drop")
    plain = _prior(tiny_pipelines["sd1"]).encode_prompt(["a duck"]).tokens
    torch.testing.assert_close(tokens, plain, atol=1e-6, rtol=1e-5)
    assert {p.dtype for p in single.text.towers[0].encoder.parameters()} == {torch.float32}
    assert single.text.towers[0].tokenizer(["a duck"]).input_ids == words


def test_words_are_looked_up_without_the_encoders_that_were_dropped(tiny_pipelines):
    prior = _prior(tiny_pipelines["sdxl"], text_encoder="drop")
    PromptToPromptPrior(prior, PromptToPromptConfig("a duck", (EditedPromptConfig("a fox"),)))
    edit = MoveConfig(("duck",), (0.2, 0.0))
    guided = SelfGuidanceConfig(prompt="a duck", edits=(edit,))
    SelfGuidedPrior(prior, guided, Reference("a duck"))
    latents = torch.zeros(1, 4, 8, 8)
    word_maps(prior, latents, "a duck", ["duck"], generator=torch.Generator().manual_seed(0))
    assert not prior.text.is_loaded
    found = [tokenizer.model_max_length for tokenizer in prior.text.tokenizers]
    assert found == [tower.tokenizer.model_max_length for tower in prior.text.towers]
    assert prior.text.tokenizers[0] is prior.text.towers[0].tokenizer


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu0", ""])
def test_unknown_device_is_refused(name):
    with pytest.raises(ValueError, match="expected cpu, cuda, cuda:N or mps"):
        PriorMemoryConfig(device=name)


def test_prior_lives_on_the_scene_device_unless_told(tiny_pipelines):
    scene = torch.device("meta")
    assert prior_device(PriorMemoryConfig(), scene) == scene
    assert prior_device(PriorMemoryConfig(device="cpu"), scene) == CPU
    config = DiffusersPriorConfig(
        model=str(tiny_pipelines["sd1"]), memory=PriorMemoryConfig(device="cpu")
    )
    assert load_prior(config, scene).device == CPU


def test_absent_device_is_named():
    with pytest.raises(BackendMissing, match=r"'cuda:99', and this machine has \d+ of that kind"):
        prior_device(PriorMemoryConfig(device="cuda:99"), CPU)


class _Arrived(Exception):
    """Raised where the inputs have reached the denoiser."""


def test_images_and_latents_cross_to_the_prior_and_back(tiny_pipelines):
    """No second device here: PyTorch's fake tensors carry a device and refuse to mix two."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    prior = _prior(tiny_pipelines["sd1"])
    cond, t = prior.encode_prompt(["a duck"]), torch.tensor([3, 900])
    away = torch.device("mps:0")
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        for module in (*prior.unet.modules(), *prior.vae.modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    moved = torch.empty(parameter.shape, device=away)
                    module._parameters[name] = nn.Parameter(moved, requires_grad=False)
        prior.vae.set_default_attn_processor()
        assert prior.device == away
        latents = prior.encode_images(torch.rand(2, SIZE, SIZE, 3))
        assert latents.device == CPU
        assert prior.decode_latents(latents).device == CPU

        def look(_, args, kwargs):
            inputs = (*args, kwargs["encoder_hidden_states"])
            assert {tensor.device for tensor in inputs} == {away}
            raise _Arrived

        prior.unet.register_forward_pre_hook(look, with_kwargs=True)
        with pytest.raises(_Arrived):
            prior.predict_noise(latents, t, cond)
