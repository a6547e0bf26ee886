"""LoRAs on models: exact sums, nothing left when off or taken off, nobody else's switches moved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from image_tools.diffusion.loading import load_folder
from image_tools.diffusion.lora import LoraAdapter
from image_tools.diffusion.lora_apply import (
    active_loras,
    attach_lora,
    attach_to_prior,
    collect_lora,
    detach_from_prior,
    detach_lora,
    fingerprint_loras,
    loras_active,
    prior_modules,
)
from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile
from image_tools.errors import UnsupportedModel
from renderers.errors import StudioError
from tests.image_tools.random_loras import layer_weights, random_lora, same_changes
from tests.image_tools.tiny_unets import call_unet, tiny_unet


@pytest.fixture
def modules() -> dict[str, nn.Module]:
    """A fresh denoiser."""
    return {"unet": tiny_unet().requires_grad_(False)}


def changed_unet(*loras: tuple[LoraFile, float]) -> nn.Module:
    """The same denoiser with the changes added to its weights."""
    unet = tiny_unet()
    with torch.no_grad():
        for lora, factor in loras:
            for name, delta in lora.sections["unet"].items():
                unet.get_submodule(name).weight += factor * delta.weight()
    return unet


def wants_gradient(module: nn.Module) -> set[str]:
    """Names of parameters that take gradients."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


def test_attached_loras_add_their_weighted_changes_and_leave_exactly(modules):
    base = call_unet(modules["unet"])
    kinds = [type(module) for module in modules["unet"].modules()]
    first, second = random_lora(modules, seed=1), random_lora(modules, seed=2, ending="to_v")
    attach_lora(modules, first, name="first", weight=0.5)
    assert torch.allclose(
        call_unet(modules["unet"]), call_unet(changed_unet((first, 0.5))), atol=1e-5
    )
    attach_lora(modules, second, name="second")
    assert active_loras(modules) == {"first": 0.5, "second": 1.0}
    both = call_unet(changed_unet((first, 0.5), (second, 1.0)))
    assert torch.allclose(call_unet(modules["unet"]), both, atol=1e-5)
    detach_lora(modules, "first")
    assert torch.allclose(
        call_unet(modules["unet"]), call_unet(changed_unet((second, 1.0))), atol=1e-5
    )
    detach_lora(modules, "second")
    assert torch.equal(call_unet(modules["unet"]), base)
    assert [type(module) for module in modules["unet"].modules()] == kinds
    assert not hasattr(modules["unet"], "peft_config")
    attach_lora(modules, first, name="first")  # the name is free again


def test_with_nothing_active_the_base_model_predicts_bit_for_bit(modules):
    base = call_unet(modules["unet"])
    attach_lora(modules, random_lora(modules), name="subject", weight=0.8)
    on = call_unet(modules["unet"])
    with loras_active(modules, {}):
        assert torch.equal(call_unet(modules["unet"]), base)
        assert active_loras(modules) == {}
    assert torch.equal(call_unet(modules["unet"]), on)


def test_switching_restores_weights_order_and_gradient_flags_even_after_an_error(modules):
    attach_lora(modules, random_lora(modules, seed=1), name="subject", weight=0.8)
    attach_lora(modules, random_lora(modules, seed=2), name="style", weight=0.3)
    before, seen = active_loras(modules), call_unet(modules["unet"])
    for name, parameter in modules["unet"].named_parameters():
        parameter.requires_grad_(".subject." in name)
    flags = wants_gradient(modules["unet"])

    def fail_inside() -> None:
        with loras_active(modules, {"style": 1.0}):
            assert active_loras(modules) == {"style": 1.0}
            assert wants_gradient(modules["unet"]) == flags
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail_inside()
    assert active_loras(modules) == before
    assert wants_gradient(modules["unet"]) == flags
    assert torch.equal(call_unet(modules["unet"]), seen)


def test_the_stock_switch_by_scale_zero_would_lose_the_weights_and_ours_does_not(modules):
    """Why ``cross_attention_kwargs={"scale": 0}`` is never used."""
    from tests.image_tools.tiny_unets import inputs

    attach_lora(modules, random_lora(modules, seed=1), name="subject", weight=0.8)
    with loras_active(modules, {}):
        call_unet(modules["unet"])
    assert active_loras(modules) == {"subject": 0.8}
    latents, t, text = inputs()
    with torch.no_grad():
        modules["unet"](latents, t, text, cross_attention_kwargs={"scale": 0.0})
    assert active_loras(modules) == {"subject": 1.0}, "diffusers resets it"


def test_a_critic_acts_on_top_of_an_attached_subject(modules, generator):
    unet = modules["unet"]
    base = call_unet(unet)
    attach_lora(modules, random_lora(modules), name="subject")
    subject = call_unet(unet)
    critic = LoraAdapter(unet, rank=2, generator=generator)
    assert torch.equal(call_unet(unet), subject)
    with critic.on():
        assert torch.equal(call_unet(unet), subject), "zero on top of the subject"
        assert wants_gradient(unet) == {
            n for n, _ in unet.named_parameters() if f".{critic.name}." in n
        }
    with loras_active(modules, {}), critic.on():
        assert torch.equal(call_unet(unet), base)
    detach_lora(modules, "subject")
    with critic.on():
        assert torch.equal(call_unet(unet), base)
    critic.remove()
    assert torch.equal(call_unet(unet), base)


def test_attaching_moves_no_other_adapter_and_no_flag(modules, generator):
    unet = modules["unet"]
    critic = LoraAdapter(unet, rank=2, generator=generator)
    for parameter in critic.parameters.values():
        parameter.requires_grad_(True)
    flags = wants_gradient(unet)
    attach_lora(modules, random_lora(modules, ending="to_q"), name="subject")
    assert active_loras(modules) == {"subject": 1.0}
    assert wants_gradient(unet) == flags
    unet.disable_adapters()
    before = call_unet(unet)
    attach_lora(modules, random_lora(modules, ending="conv1"), name="style")
    assert torch.equal(call_unet(unet), before), "switched off as a whole, and still so"


def test_what_is_attached_can_be_collected_with_its_own_alpha(modules):
    lora = random_lora(modules)
    attach_lora(modules, lora, name="subject", weight=0.25)
    found = collect_lora(modules, "subject")
    assert same_changes(lora, found, tolerance=0.0)
    assert found.layers_per_block == 1


def test_trained_adapters_are_collected_with_rank_stabilised_scale(modules):
    from peft import LoraConfig

    settings = LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["to_q"])
    modules["unet"].add_adapter(settings, "mine")
    assert {delta.scale for _, _, delta in collect_lora(modules, "mine").deltas()} == {3.0}


def test_dora_lengths_act(modules):
    lora = random_lora(modules, ending=("to_q", "conv2"))
    unet, weights = modules["unet"], layer_weights(modules)
    deltas, wanted = {}, tiny_unet()
    for name, delta in lora.sections["unet"].items():
        new = weights["unet", name].detach() + delta.weight()
        lengths = new.flatten(1).norm(dim=1)
        deltas[name] = replace(delta, magnitude=2.0 * lengths)
        with torch.no_grad():
            wanted.get_submodule(name).weight.copy_(2.0 * new)
    base = call_unet(unet)
    attach_lora(modules, LoraFile({"unet": deltas}), name="dora")
    assert torch.allclose(call_unet(unet), call_unet(wanted), atol=1e-4)
    with loras_active(modules, {}):
        assert torch.equal(call_unet(unet), base)


def test_one_by_one_convolutions_and_linear_layers_are_the_same_thing(modules):
    lora = random_lora(modules, ending="proj_in")
    flat = {
        name: LoraDelta(delta.down.flatten(1), delta.up.flatten(1), delta.alpha)
        for name, delta in lora.sections["unet"].items()
    }
    assert {delta.down.ndim for _, _, delta in lora.deltas()} == {4}
    attach_lora(modules, LoraFile({"unet": flat}), name="flat")
    assert torch.allclose(
        call_unet(modules["unet"]), call_unet(changed_unet((lora, 1.0))), atol=1e-5
    )


def test_the_fingerprint_follows_weights_and_numbers(modules):
    assert fingerprint_loras(modules) == ""
    attach_lora(modules, random_lora(modules, seed=1), name="subject")
    first = fingerprint_loras(modules)
    with loras_active(modules, {"subject": 0.5}):
        assert fingerprint_loras(modules) not in ("", first)
    with loras_active(modules, {}):
        assert fingerprint_loras(modules) == ""
    assert fingerprint_loras(modules) == first
    other = {"unet": tiny_unet()}
    attach_lora(other, random_lora(other, seed=1), name="renamed")
    assert fingerprint_loras(other) == first
    next(p for n, p in other["unet"].named_parameters() if "lora_B" in n).data += 1.0
    assert fingerprint_loras(other) != first


WRONG = {
    "unknown layer": ({"up_blocks.7.attentions.0.proj_in": ((2, 16), (16, 2))}, "up_blocks.7"),
    "no layer": ({"down_blocks.0.resnets.0.norm1": ((2, 16), (16, 2))}, "linear or convolution"),
    "wrong width": (
        {"mid_block.attentions.0.transformer_blocks.0.attn2.to_k": ((2, 768), (32, 2))},
        r"\[32, 768\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_lora_of_another_model_is_refused_and_nothing_changed(case, modules):
    shapes, words = WRONG[case]
    good = random_lora(modules, ending="to_q").sections["unet"]
    bad = {name: LoraDelta(torch.ones(d), torch.ones(u), 1.0) for name, (d, u) in shapes.items()}
    with pytest.raises(UnsupportedModel, match=words):
        attach_lora(modules, LoraFile({"unet": {**good, **bad}}), name="wrong")
    assert not hasattr(modules["unet"], "peft_config")


def test_sections_and_names_are_checked(modules):
    lora = random_lora(modules, ending="to_q")
    text = LoraFile({"text_encoder_2": lora.sections["unet"]})
    with pytest.raises(UnsupportedModel, match="text_encoder_2, which the model does not have"):
        attach_lora(modules, text, name="xl")
    attach_lora(modules, lora, name="subject")
    with pytest.raises(StudioError, match="already a LoRA 'subject'"):
        attach_lora(modules, lora, name="subject")
    with pytest.raises(StudioError, match="no dot"):
        attach_lora(modules, lora, name="v1.5")
    with (
        pytest.raises(StudioError, match=r"no LoRA 'style'\. Attached: subject"),
        loras_active(modules, {"style": 1.0}),
    ):
        pass
    with pytest.raises(StudioError, match="no LoRA 'style'"):
        detach_lora(modules, "style")


@pytest.fixture(params=["sd1", "sdxl", "pocket"])
def prior(request, tiny_pipelines, tmp_path):
    """A prior whose prompts are kept on disk."""
    from image_tools.configs import DiffusersPriorConfig, PriorMemoryConfig
    from image_tools.diffusion.loading import load_prior

    config = DiffusersPriorConfig(
        model=str(tiny_pipelines[request.param]),
        prompt_cache=str(tmp_path),
        memory=PriorMemoryConfig(text_encoder="drop"),
    )
    return load_prior(config, torch.device("cpu"))


def tokens(prior) -> Tensor:
    """A prompt's embedding."""
    return prior.encode_prompt(["a red duck"]).tokens


def test_prompts_are_cached_by_what_acts_on_the_text_encoders(prior):
    plain, own = tokens(prior), prior.fingerprint
    assert not prior.text.is_loaded
    _ = prior.text.towers
    modules = prior_modules(prior)
    assert set(modules) >= {"unet", "text_encoder"}
    lora = random_lora({k: v for k, v in modules.items() if k != "unet"})
    attach_to_prior(prior, lora, name="subject")
    changed = tokens(prior)
    assert not torch.equal(changed, plain)
    assert prior.fingerprint != own
    assert prior.text.is_loaded, "dropping the encoders would lose what is attached"
    with loras_active(prior_modules(prior), {}):
        assert prior.fingerprint == own
        assert torch.equal(tokens(prior), plain)
    assert torch.equal(tokens(prior), changed)
    detach_from_prior(prior, "subject")
    assert prior.fingerprint == own
    assert torch.equal(tokens(prior), plain)


def test_a_denoiser_s_lora_reads_no_text_encoder(tiny_pipelines):
    prior = load_folder(tiny_pipelines["pocket"], torch.device("cpu"))
    attach_to_prior(prior, random_lora({"unet": prior.unet}), name="subject")
    assert not prior.text.is_loaded
    assert active_loras(prior_modules(prior)) == {"subject": 1.0}
