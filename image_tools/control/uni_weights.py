"""Uni-ControlNet's adapters in files, by the names that the authors' checkpoint has for them.

``uni.ckpt`` holds a whole Stable Diffusion, ``local_adapter.*`` and ``global_adapter.*``. Only the
adapters are kept, by ``torch.load(weights_only=True)`` alone, which builds no objects, or of a
.safetensors conversion of it. What is written here has the same names, and the adapters' settings
in the file's metadata; a file without settings is the authors' own.

    local, content = read_uni(Path("uni.safetensors"), prior.unet)
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_tools.control.ldm_names import control_names
from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import GlobalAdapterSettings, LocalAdapterSettings
from image_tools.diffusion.ldm_names import translate
from image_tools.diffusion.loading import readable_weights
from image_tools.diffusion.protocol import NoisePrior
from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.diffusion.weights import check_safetensors_file
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.tensor_files import PICKLED, read_flat

__all__ = ["local_from_original", "local_to_original", "read_uni", "read_wanted", "write_uni"]

ROLE = "Uni-ControlNet"
LOCAL_PREFIX, GLOBAL_PREFIX = "local_adapter.", "global_adapter."
SHOWN_KEYS = 5


def local_from_original(
    tensors: Mapping[str, Tensor], unet_config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The local adapter's tensors by our names, of a checkpoint with the authors' names.

    Raises:
        UnsupportedModel: naming the first tensors that belong nowhere.
    """
    names = _local_names(unet_config)
    own = {k.removeprefix(LOCAL_PREFIX): k for k in tensors if k.startswith(LOCAL_PREFIX)}
    translated = {translate(short, names): key for short, key in own.items()}
    unknown = [short for short in own if translate(short, names) is None]
    if unknown:
        raise UnsupportedModel(
            f"{len(unknown)} tensors belong nowhere in a local adapter of this denoiser: "
            f"{', '.join(unknown[:SHOWN_KEYS])}. Expected the prior that it was trained for."
        )
    return {name: tensors[key] for name, key in translated.items()}


def local_to_original(
    tensors: Mapping[str, Tensor], unet_config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """The inverse of :func:`local_from_original`."""
    inverse = {ours: theirs for theirs, ours in _local_names(unet_config).items()}
    return {f"{LOCAL_PREFIX}{translate(k, inverse)}": tensor for k, tensor in tensors.items()}


def read_uni(
    path: Path, unet: nn.Module, dtype: torch.dtype = torch.float32
) -> tuple[LocalAdapter | None, GlobalAdapter | None]:
    """The adapters in a file, for a denoiser; None for one that is not there.

    Raises:
        WeightsMissing: absent, damaged or without adapters; UnsafeWeights: more than tensors in it.
        UnsupportedModel: adapters of another denoiser.
    """
    path = path.expanduser()
    tensors, settings = _read(path)
    local, content = None, None
    if any(key.startswith(LOCAL_PREFIX) for key in tensors):
        own = local_from_original(tensors, unet.config)
        with torch.device("meta"):
            local = LocalAdapter(unet.config, settings[0])
        _load(local, own, dtype, path)
    short = {
        key.removeprefix(GLOBAL_PREFIX): t
        for key, t in tensors.items()
        if key.startswith(GLOBAL_PREFIX)
    }
    if short:
        with torch.device("meta"):
            content = GlobalAdapter(settings[1])
        _load(content, short, dtype, path)
    if local is None and content is None:
        raise WeightsMissing(
            f"'{path}' holds neither {LOCAL_PREFIX}* nor {GLOBAL_PREFIX}*. Expected a "
            "Uni-ControlNet checkpoint."
        )
    return local, content


def read_wanted(
    path: Path, prior: NoisePrior, *, key: str, maps: bool, content: bool
) -> tuple[LocalAdapter | None, GlobalAdapter | None]:
    """The adapters in a file, for a prior and on its device, of which those for maps and for the
    content are there where they are wanted.

    Raises:
        WeightsMissing: a wanted one is not; and as :func:`read_uni`.
        UnsupportedModel: adapters of another denoiser.
    """
    local, global_ = read_uni(path, prior.unet, prior.dtype)
    for name, is_wanted, adapter in (("maps", maps, local), ("content", content, global_)):
        if is_wanted and adapter is None:
            raise WeightsMissing(
                f"{key}.model: '{path}' holds no adapter for {name} - expected one. Leave "
                f"{key}.{name} out, or name a file that has it."
            )
    local, global_ = (one if one is None else one.to(prior.device) for one in (local, global_))
    return local, global_


def write_uni(path: Path, local: LocalAdapter | None, content: GlobalAdapter | None) -> None:
    """Write adapters by the authors' names, with their settings."""
    tensors: dict[str, Tensor] = {}
    metadata = {"format": "pt"}
    if local is not None:
        tensors |= local_to_original(local.state_dict(), local.unet_config)
        metadata["local_adapter"] = json.dumps(dataclasses.asdict(local.settings))
    if content is not None:
        tensors |= {f"{GLOBAL_PREFIX}{k}": t for k, t in content.state_dict().items()}
        metadata["global_adapter"] = json.dumps(dataclasses.asdict(content.settings))
    write_safetensors(path, tensors, metadata)


def _read(
    path: Path,
) -> tuple[dict[str, Tensor], tuple[LocalAdapterSettings, GlobalAdapterSettings]]:
    from safetensors import safe_open

    if path.suffix in PICKLED:
        every = read_flat(path, ROLE)
        own = {k: t for k, t in every.items() if k.startswith((LOCAL_PREFIX, GLOBAL_PREFIX))}
        return own, (LocalAdapterSettings(), GlobalAdapterSettings())
    check_safetensors_file(path, role=ROLE)
    with readable_weights(path, ROLE), safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        wanted = [k for k in file.keys() if k.startswith((LOCAL_PREFIX, GLOBAL_PREFIX))]  # noqa: SIM118
        tensors = {key: file.get_tensor(key) for key in wanted}
        said = json.loads(metadata.get("local_adapter", "{}"))
        lists = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items()}
        local = LocalAdapterSettings(**lists)
        content = GlobalAdapterSettings(**json.loads(metadata.get("global_adapter", "{}")))
    return tensors, (local, content)


def _load(module: nn.Module, tensors: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> None:
    expected = {name: tuple(t.shape) for name, t in module.state_dict().items()}
    actual = {name: tuple(t.shape) for name, t in tensors.items()}
    wrong = sorted(n for n in {*actual, *expected} if actual.get(n) != expected.get(n))
    if wrong:
        said = ", ".join(
            f"{n} ({actual.get(n, 'absent')}, expected {expected.get(n, 'nothing')})"
            for n in wrong[:SHOWN_KEYS]
        )
        raise UnsupportedModel(
            f"'{path}' does not fit this prior's denoiser in {len(wrong)} tensors: {said}. "
            "Expected adapters that were trained for it."
        )
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    module.load_state_dict(cast, strict=True, assign=True)
    module.eval().requires_grad_(False)


def _local_names(unet_config: Mapping[str, Any]) -> dict[str, str]:
    """Beginnings of the authors' names and ours."""
    names = {**control_names(unet_config), "feature_extractor": "feature_extractor"}
    place = 1
    for level in range(len(unet_config["block_out_channels"])):
        theirs, ours = f"input_blocks.{place}.0", f"down_blocks.{level}.resnets.0"
        for norm, old in (("norm_in", "in_layers.0"), ("norm_out", "out_layers.0")):
            names[f"{theirs}.{norm}"] = f"{ours}.{norm}"
            del names[f"{theirs}.{old}"]
        place += unet_config["layers_per_block"] + 1
    return names
