"""Least-squares fusion: the closed form against its objective, and on a real denoiser."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from image_tools.diffusion.lora_apply import attach_lora, detach_lora
from image_tools.diffusion.lora_deltas import LoraDelta, LoraFile
from image_tools.personalization.least_squares import (
    fuse_loras,
    least_squares_change,
    record_grams,
)
from renderers.errors import StudioError
from tests.image_tools.random_loras import random_lora, same_changes
from tests.image_tools.tiny_unets import call_unet, tiny_unet

LAYER = "mid_block.attentions.0.proj_in"


def test_inputs_that_do_not_meet_are_each_answered_as_their_lora_does(generator):
    basis = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64))[0]
    inputs = (basis[:, :3], basis[:, 3:6])
    changes = [torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in inputs]
    fused = least_squares_change(changes, [x @ x.T for x in inputs], ridge=1e-10)
    for change, x in zip(changes, inputs, strict=True):
        assert torch.allclose(fused @ x, change @ x, atol=1e-5)
    assert torch.allclose(fused @ basis[:, 6:], torch.zeros(5, 2).double(), atol=1e-5), (
        "unseen: the base"
    )


def test_no_other_change_comes_closer(generator):
    inputs = [torch.randn(6, 20, generator=generator, dtype=torch.float64) for _ in range(3)]
    changes = [torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in inputs]
    fused = least_squares_change(changes, [x @ x.T for x in inputs], ridge=1e-13)
    fused.requires_grad_(True)
    pairs = zip(changes, inputs, strict=True)
    objective = sum(((change - fused) @ x).square().sum() for change, x in pairs)
    (gradient,) = torch.autograd.grad(objective, fused)
    assert gradient.abs().max() < 1e-8


def test_equal_inputs_give_the_mean_and_silent_layers_no_change(generator):
    gram = torch.eye(4)
    changes = [torch.randn(3, 4, generator=generator) for _ in range(2)]
    fused = least_squares_change(changes, [gram, gram], ridge=1e-12)
    assert torch.allclose(fused, (changes[0] + changes[1]) / 2, atol=1e-6)
    silent = torch.zeros(4, 4)
    assert torch.equal(least_squares_change(changes, [silent, silent]), torch.zeros(3, 4))


def test_recorded_grams_are_the_means_of_what_layers_multiply():
    """A layer's mean squared output follows from its gram: tr(W G W^T)."""
    unet = tiny_unet()
    lora = random_lora({"unet": unet}, ending=("to_v", "conv2", "downsamplers.0.conv"))
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def after(layer: nn.Module, inputs, output) -> None:
            channel = 1 if isinstance(layer, nn.Conv2d) else -1
            bias = 0.0 if layer.bias is None else layer.bias
            outputs[name] = output.movedim(channel, -1) - bias

        return after

    names = list(lora.sections["unet"])
    hooks = [unet.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    with record_grams({"unet": unet}, lora) as grams:
        call_unet(unet)
    for hook in hooks:
        hook.remove()
    assert {name for _, name in grams} == set(names)
    for name in names:
        weight = unet.get_submodule(name).weight.detach().flatten(1).double()
        wanted = outputs[name].flatten(0, -2).double().square().sum(1).mean()
        found = torch.trace(weight @ grams["unet", name] @ weight.T)
        assert torch.allclose(found, wanted, rtol=1e-4), name
    count = sum(len(module._forward_pre_hooks) for module in unet.modules())
    assert count == 0


def test_one_lora_fuses_to_itself_where_the_model_looks():
    modules = {"unet": tiny_unet()}
    lora = random_lora(modules, ending=("to_q", "to_v"), alpha=lambda name: 2.0)
    attach_lora(modules, lora, name="subject")
    seen = call_unet(modules["unet"])
    with record_grams(modules, lora) as grams:
        call_unet(modules["unet"])
    detach_lora(modules, "subject")
    fused = fuse_loras([lora], [grams], rank=16, ridge=1e-10)
    attach_lora(modules, fused, name="fused")
    assert torch.allclose(call_unet(modules["unet"]), seen, atol=1e-3)


def test_layers_of_either_lora_are_fused_and_missing_inputs_named(generator):
    down, up = torch.randn(2, 4, generator=generator), torch.randn(3, 2, generator=generator)
    first = LoraFile({"unet": {LAYER: LoraDelta(down, up, 2.0)}})
    second = LoraFile({"unet": {"conv_in": LoraDelta(down, up, 2.0)}})
    grams = {("unet", LAYER): torch.eye(4), ("unet", "conv_in"): torch.eye(4)}
    fused = fuse_loras([first, second], [grams, grams], rank=2)
    assert set(fused.sections["unet"]) == {LAYER, "conv_in"}
    halves = LoraFile({"unet": {**first.sections["unet"], **second.sections["unet"]}}).scaled(0.5)
    assert same_changes(halves, fused, tolerance=1e-5)
    with pytest.raises(StudioError, match="No inputs of 'conv_in' were recorded for LoRA 2"):
        fuse_loras([first, second], [grams, {("unet", LAYER): torch.eye(4)}], rank=2)
