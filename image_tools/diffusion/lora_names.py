"""Names of layers as kohya, A1111 and ComfyUI write them: underscores for dots, Stability's blocks.

kohya joins a layer's path with underscores, which names contain as well; the words that keep
theirs are listed here. SDXL denoisers go by Stability's block numbers (``input_blocks_4_1``),
those of Stable Diffusion 1.x and 2.x by diffusers' names (``down_blocks_1_attentions_0``); both
are read.

    layer_of_kohya("lora_te1_text_model_encoder_layers_0_mlp_fc1", 2)
    # ("text_encoder", "encoder.layers.0.mlp.fc1")
"""

from __future__ import annotations

import re

from image_tools.diffusion.lora_deltas import BaseModel, Section

__all__ = [
    "add_text_model",
    "from_stability",
    "kohya_of_layer",
    "layer_of_kohya",
    "strip_text_model",
]

# Names of modules that contain underscores.
_WORDS = (
    "add_embedding add_k_proj add_q_proj add_v_proj class_embedding conv_in conv_norm_out "
    "conv_out conv_shortcut down_blocks emb_layers final_layer_norm in_layers input_blocks "
    "k_proj label_emb layer_norm1 layer_norm2 linear_1 linear_2 mid_block middle_block "
    "out_layers out_proj output_blocks position_embedding proj_in proj_out q_proj self_attn "
    "skip_connection text_model text_projection time_emb_proj time_embed time_embedding "
    "to_add_out to_k to_out to_q to_v token_embedding transformer_blocks up_blocks v_proj"
)
# The longest first, so that none hides another.
_WORD = re.compile(
    rf"(?<![a-z0-9])({'|'.join(sorted(_WORDS.split(), key=len, reverse=True))})(?![a-z0-9])"
)
_PREFIXES: dict[str, Section] = {
    "lora_unet_": "unet",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te_": "text_encoder",
}
# Stability's name and diffusers' for what lies outside the blocks, and inside a ResNet.
_OUTSIDE = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}
_RESNET = {
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}


def layer_of_kohya(name: str, layers_per_block: int) -> tuple[Section, str] | None:
    """Section and diffusers name of a layer, or None for a name that is not kohya's."""
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return None
    section = _PREFIXES[prefix]
    kept = _WORD.sub(lambda word: word[0].replace("_", "-"), name.removeprefix(prefix))
    dotted = kept.replace("_", ".").replace("-", "_")
    if section == "unet":
        return section, from_stability(dotted, layers_per_block)
    return section, strip_text_model(dotted)


def kohya_of_layer(
    section: Section, layer: str, *, base_model: BaseModel, layers_per_block: int
) -> str:
    """kohya's name of a layer, as its trainer writes it for the family of the base model."""
    if section == "unet":
        is_stability = base_model == "sdxl"
        name = _to_stability(layer, layers_per_block) if is_stability else layer
        return "lora_unet_" + name.replace(".", "_")
    prefix = "lora_te2_" if section == "text_encoder_2" else "lora_te_"
    if section == "text_encoder" and base_model == "sdxl":
        prefix = "lora_te1_"
    return prefix + add_text_model(layer).replace(".", "_")


def strip_text_model(layer: str) -> str:
    """A CLIP layer's name as transformers has it since version 5.6, without its first part."""
    return layer.removeprefix("text_model.")


def add_text_model(layer: str) -> str:
    """A CLIP layer's name as files have it: with the part that transformers 5.6 gave up."""
    is_clip = layer.startswith(("encoder.layers.", "embeddings.", "final_layer_norm"))
    return f"text_model.{layer}" if is_clip and ".layer." not in layer else layer


def from_stability(name: str, layers_per_block: int) -> str:
    """Stability's name of a denoiser's layer in diffusers' words; others are left alone."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)", name)
    if match is None:
        return name
    group, number, rest = match[1], int(match[2]), match[3]
    if group == "middle_block":
        part = _MIDDLE.get(match[2], f"unknown.{number}")
        return f"mid_block.{part}.{_resnet_part(rest)}"
    inner, _, rest = rest.partition(".")
    block, layer = divmod(number - (group == "input_blocks"), layers_per_block + 1)
    side = "down_blocks" if group == "input_blocks" else "up_blocks"
    if inner == "0" and rest == "op":
        return f"{side}.{block}.downsamplers.0.conv"
    if rest == "conv":
        return f"{side}.{block}.upsamplers.0.conv"
    kind = "resnets" if inner == "0" else "attentions"
    return f"{side}.{block}.{kind}.{layer}.{_resnet_part(rest)}"


def _resnet_part(rest: str) -> str:
    return _RESNET.get(rest, rest)


def _to_stability(layer: str, layers_per_block: int) -> str:
    """diffusers' name of an SDXL denoiser's layer in Stability's words."""
    for theirs, ours in _OUTSIDE.items():
        if layer == ours:
            return theirs
    head, _, rest = layer.partition(".")
    if head == "mid_block":
        number, part = next((n, p) for n, p in _MIDDLE.items() if rest.startswith(f"{p}."))
        return f"middle_block.{number}.{_their_resnet_part(rest.removeprefix(f'{part}.'))}"
    match = re.fullmatch(r"(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", rest)
    if head not in ("down_blocks", "up_blocks") or match is None:
        return layer
    block, kind, inner, rest = int(match[1]), match[2], int(match[3]), match[4]
    first = block * (layers_per_block + 1)
    if kind == "downsamplers":
        return f"input_blocks.{first + layers_per_block + 1}.0.op"
    if kind == "upsamplers":  # of a block with attention, as all of SDXL's with an upsampler are
        return f"output_blocks.{first + layers_per_block}.2.conv"
    side, number = ("input_blocks", first + inner + 1) if head == "down_blocks" else (
        "output_blocks", first + inner)  # fmt: skip
    place = 0 if kind == "resnets" else 1
    return f"{side}.{number}.{place}.{_their_resnet_part(rest)}"


def _their_resnet_part(rest: str) -> str:
    return next((theirs for theirs, ours in _RESNET.items() if ours == rest), rest)
