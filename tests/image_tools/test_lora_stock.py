"""What we write loads in stock diffusers with the same change, and what it writes loads here."""

from __future__ import annotations

from functools import partial

import diffusers
import pytest
import torch

from image_tools.diffusion.lora_apply import collect_lora
from image_tools.diffusion.lora_files import LORA_WEIGHT_NAME, LoraFile, read_lora, write_lora
from image_tools.diffusion.lora_layouts import LAYOUTS
from tests.image_tools.random_loras import layer_weights, random_lora, same_changes

CLASSES = {
    "sd1": "StableDiffusionPipeline",
    "sdxl": "StableDiffusionXLPipeline",
    "pocket": "StableDiffusionPipeline",
}
SECTIONS = ("unet", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module", params=list(CLASSES))
def pipeline(request, tiny_pipelines):
    """A stock pipeline; each test unloads what it loaded."""
    return getattr(diffusers, CLASSES[request.param]).from_pretrained(tiny_pipelines[request.param])


@pytest.fixture
def modules(pipeline) -> dict:
    """Its denoiser and text encoders."""
    parts = {section: getattr(pipeline, section, None) for section in SECTIONS}
    return {section: part for section, part in parts.items() if part is not None}


def loaded(pipeline, modules) -> LoraFile:
    """What stock diffusers has attached, as a LoRA, and unloaded afterwards."""
    name = next(iter(pipeline.unet.peft_config))
    found = collect_lora(modules, name)
    pipeline.unload_lora_weights()
    return found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_stock_diffusers_loads_every_layer_with_the_same_change(
    layout, pipeline, modules, tmp_path
):
    """Linear layers and convolutions, ranks and alphas that differ by layer."""
    if layout != "diffusers" and modules["text_encoder"].config.model_type == "bert":
        modules = {"unet": modules["unet"]}  # stock knows only CLIP's names in other layouts
    lora = random_lora(modules)
    assert len(list(lora.deltas())) == len(layer_weights(modules)) > 80
    write_lora(tmp_path / LORA_WEIGHT_NAME, lora, layout=layout)
    pipeline.load_lora_weights(tmp_path)
    assert same_changes(lora, loaded(pipeline, modules))


def test_stock_diffusers_fuses_the_change_into_the_weights_and_takes_it_back(
    pipeline, modules, tmp_path
):
    lora = random_lora(modules)
    base = {key: weight.detach().clone() for key, weight in layer_weights(modules).items()}
    write_lora(tmp_path / LORA_WEIGHT_NAME, lora, layout="diffusers")
    pipeline.load_lora_weights(tmp_path)
    close = partial(torch.testing.assert_close, rtol=0.0, atol=1e-6)
    pipeline.fuse_lora(components=list(modules))
    fused = layer_weights(modules)
    for section, name, delta in lora.deltas():
        close(fused[section, name].detach(), base[section, name] + delta.weight())
    pipeline.unfuse_lora(components=list(modules))
    assert fused.keys() == base.keys()
    for key, weight in layer_weights(modules).items():
        close(weight.detach(), base[key])
    pipeline.unload_lora_weights()


def test_stock_diffusers_loads_dora(pipeline, modules, tmp_path):
    from dataclasses import replace

    lora = random_lora(modules, ending=("to_k", "k_proj", "self.key"))
    weights = layer_weights(modules)
    sections: dict = {}
    for section, name, delta in lora.deltas():
        lengths = 1.5 * weights[section, name].detach().norm(dim=1)
        sections.setdefault(section, {})[name] = replace(delta, magnitude=lengths)
    write_lora(tmp_path / LORA_WEIGHT_NAME, LoraFile(sections), layout="diffusers")
    pipeline.load_lora_weights(tmp_path)
    found = loaded(pipeline, modules)
    for section, name, delta in found.deltas():
        wanted = sections[section][name].with_alpha(float(delta.rank))
        assert torch.equal(delta.up, wanted.up)
        assert torch.equal(delta.magnitude, wanted.magnitude)
        assert delta.alpha == wanted.alpha


def test_files_that_stock_diffusers_saves_are_read_with_their_alpha(pipeline, modules, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    is_bert = modules["text_encoder"].config.model_type == "bert"
    targets = {"unet": ["to_q", "to_v", "conv1"]}
    targets["text_encoder"] = ["query", "dense"] if is_bert else ["q_proj", "fc1"]
    targets["text_encoder_2"] = targets["text_encoder"]
    states = {}
    for section, module in modules.items():
        settings = LoraConfig(r=4, lora_alpha=2, target_modules=targets[section])
        module.add_adapter(settings, "mine")
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
        states[f"{section}_lora_layers"] = get_peft_model_state_dict(module, adapter_name="mine")
    trained = collect_lora(modules, "mine")
    texts = {
        f"{section}_lora_adapter_metadata": module.peft_config["mine"].to_dict()
        for section, module in modules.items()
    }
    pipeline.save_lora_weights(tmp_path, **states, **texts)
    pipeline.unload_lora_weights()
    found = read_lora(tmp_path)
    assert {delta.scale for _, _, delta in found.deltas()} == {0.5}
    assert same_changes(trained, found)
