"""From a prior's configuration to a ``DiffusionPrior``, from stock folders or one single file.

Only what is used is read: the denoiser, the VAE, the scheduler's settings, and the text encoders
when the first prompt comes that the cache does not know.

    prior = load_prior(DiffusersPriorConfig(model="~/models/sd15"), torch.device("cuda"))
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from image_tools.configs import (
    AestheticsConfig,
    DiffusersPriorConfig,
    MVDreamPriorConfig,
    PersonalizedPriorConfig,
    PocketMultiViewPriorConfig,
    PriorConfig,
    PriorMemoryConfig,
    ReferencedPriorConfig,
    SingleFilePriorConfig,
)
from image_tools.diffusion.layout import (
    ROLE,
    StockFolderConfig,
    find_unet,
    locate_folder,
    read_index,
    tower_names,
    weight_files,
)
from image_tools.diffusion.memory import apply_memory_options, prior_device, vae_dtype
from image_tools.diffusion.multiview import MultiViewPrior
from image_tools.diffusion.mvdream_weights import read_mvdream_unet
from image_tools.diffusion.prior import DiffusionPrior, PriorParts
from image_tools.diffusion.prompt_cache import PromptCache
from image_tools.diffusion.stock_rules import (
    correct_sample_size,
    corrected_schedule,
    refuse_edm,
)
from image_tools.diffusion.text import TextStack, TextTower
from image_tools.diffusion.weights import check_safetensors_file, fingerprint_files, read_json
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.pocket.paths import pocket_mv_folder
from renderers.errors import StudioError, is_out_of_memory

__all__ = [
    "load_folder",
    "load_prior",
    "quiet_libraries",
    "read_module",
    "read_tensors",
    "readable_weights",
]

TOKENIZERS = ("CLIPTokenizer", "BertTokenizer")
TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "BertModel")
# Parameters that the text layouts never use, so a file may lack them.
UNUSED_PARAMETERS = ("pooler.", "position_ids")


@dataclass(frozen=True)
class _Denoiser:
    """The part of a prior that multi-view models have of their own."""

    unet: torch.nn.Module
    scheduler_config: Mapping[str, Any]
    files: list[Path]


def load_prior(
    config: PriorConfig, device: torch.device, dtype: torch.dtype | None = None
) -> DiffusionPrior:
    """Load the prior that ``config`` describes.

    Args:
        config: one of the prior configurations.
        device: where the scene lives, and the prior unless ``config.memory.device`` says else.
        dtype: number format of the denoiser; None for ``config.memory.dtype``.

    Raises:
        WeightsMissing: if files are absent or damaged; UnsafeWeights if they are pickles.
        UnsupportedModel: if the model is of a design that does not fit.
        BackendMissing: if the prior's own device is not there.
    """
    if isinstance(config, PersonalizedPriorConfig):
        from image_tools.personalization.personalized import personalized_prior

        base = load_prior(config.base, device, dtype)
        return personalized_prior(
            base, config.subjects, guidance=config.guidance, parallel=config.parallel
        )
    if isinstance(config, ReferencedPriorConfig):
        from image_tools.personalization.references import build_reference_tool

        return build_reference_tool(config.tool, load_prior(config.base, device, dtype))
    # Priors and their tools know each other, so that those let go of stay until they are collected.
    gc.collect()
    memory = config.memory
    device = prior_device(memory, device)
    dtype = dtype or getattr(torch, memory.dtype)
    if isinstance(config, SingleFilePriorConfig):
        parts = _single_file_parts(config, device, dtype)
    else:
        folder, variant = locate_folder(config)
        parts = _folder_parts(folder, variant, config, device, dtype)
    apply_memory_options(parts.vae, parts.unet, memory)
    is_multiview = isinstance(config, PocketMultiViewPriorConfig | MVDreamPriorConfig)
    prior_class = MultiViewPrior if is_multiview else DiffusionPrior
    return prior_class(
        parts,
        prompt_cache=PromptCache(config.prompt_cache) if config.prompt_cache else None,
        keep_text_encoder=memory.text_encoder != "drop",
    )


def load_folder(
    folder: Path, device: torch.device, dtype: torch.dtype = torch.float32
) -> DiffusionPrior:
    """Load a local stock diffusers folder with default options."""
    return load_prior(DiffusersPriorConfig(model=str(folder)), device, dtype)


def _folder_parts(
    folder: Path,
    variant: str | None,
    config: StockFolderConfig,
    device: torch.device,
    dtype: torch.dtype,
) -> PriorParts:
    index, memory = read_index(folder), config.memory
    from diffusers import AutoencoderKL

    towers = tower_names(index)
    files = weight_files(folder, ["vae", *(encoder for _, encoder in towers)], variant)
    denoiser = _read_denoiser(folder, variant, config, dtype)
    vae_settings = read_json(folder / "vae/config.json", role="VAE")
    read_vae = partial(
        AutoencoderKL.from_pretrained, torch_dtype=vae_dtype(memory, vae_settings, dtype)
    )
    vae = read_module(read_vae, folder / "vae", variant, "VAE")
    text_device, text_dtype = _text_place(memory, device, dtype)

    def load_towers() -> list[TextTower]:
        return [_read_tower(folder, pair, index, text_dtype, variant) for pair in towers]

    def load_tokenizers() -> list[Callable]:
        return [_read_tokenizer(folder, name, index) for name, _ in towers]

    return PriorParts(
        unet=denoiser.unet.to(device),
        vae=vae.to(device),
        text=TextStack(
            load_towers, _text_layout(denoiser.unet), device=text_device, words=load_tokenizers
        ),
        scheduler_config=denoiser.scheduler_config,
        fingerprint=fingerprint_files(denoiser.files + files + _settings_files(folder), str(dtype)),
        zero_negative=bool(index.get("force_zeros_for_empty_prompt", False)),
        aesthetics=_aesthetics(index, config),
    )


def _read_denoiser(
    folder: Path, variant: str | None, config: StockFolderConfig, dtype: torch.dtype
) -> _Denoiser:
    """The denoiser of a stock folder, or the multi-view one that replaces it."""
    from diffusers import UNet2DConditionModel

    files = find_unet(config, folder, variant)
    if isinstance(config, MVDreamPriorConfig):
        with readable_weights(files[0], "denoiser"):
            settings = read_json(folder / "unet/config.json", role=ROLE)
            unet = read_mvdream_unet(files, settings, dtype)
        return _Denoiser(unet, _read_scheduler(folder, unet), files)
    if isinstance(config, PocketMultiViewPriorConfig):
        folder = pocket_mv_folder(Path(config.path).expanduser() if config.path else None)
        files += [folder / "unet/config.json", folder / "scheduler/scheduler_config.json"]
    read_unet = partial(UNet2DConditionModel.from_pretrained, torch_dtype=dtype)
    unet = read_module(read_unet, folder / "unet", variant, "denoiser")
    correct_sample_size(unet)
    return _Denoiser(unet, _read_scheduler(folder, unet), files)


def _read_scheduler(folder: Path, unet: torch.nn.Module) -> dict[str, Any]:
    settings = read_json(folder / "scheduler/scheduler_config.json", role=ROLE)
    return corrected_schedule(settings, unet)


def _aesthetics(
    index: Mapping[str, Any],
    config: StockFolderConfig | SingleFilePriorConfig,
) -> AestheticsConfig | None:
    """The scores to tell the model, if it is one that is told."""
    if not index.get("requires_aesthetics_score"):
        return None
    can_say = isinstance(config, DiffusersPriorConfig | SingleFilePriorConfig)
    return config.aesthetics if can_say else AestheticsConfig()


def _text_place(
    memory: PriorMemoryConfig, device: torch.device, dtype: torch.dtype
) -> tuple[torch.device, torch.dtype]:
    """Device and number format of the text encoders; half precision is for GPUs."""
    text_device = torch.device("cpu") if memory.text_encoder == "cpu" else device
    return text_device, torch.float32 if text_device.type == "cpu" else dtype


def _read_tower(
    folder: Path,
    pair: tuple[str, str],
    index: dict[str, Any],
    dtype: torch.dtype,
    variant: str | None,
) -> TextTower:
    import transformers

    tokenizer_name, encoder_name = pair
    kind = index[encoder_name][1]
    if kind not in TEXT_ENCODERS:
        raise UnsupportedModel(
            f"'{folder / encoder_name}' is a {kind}. Expected {', '.join(TEXT_ENCODERS)}."
        )
    tokenizer = _read_tokenizer(folder, tokenizer_name, index)
    reader = partial(getattr(transformers, kind).from_pretrained, dtype=dtype)
    return TextTower(tokenizer, read_module(reader, folder / encoder_name, variant, "text encoder"))


def _read_tokenizer(folder: Path, name: str, index: Mapping[str, Any]) -> Callable:
    import transformers

    kind = index[name][1].removesuffix("Fast")
    if kind not in TOKENIZERS:
        raise UnsupportedModel(f"'{folder / name}' is a {kind}. Expected {', '.join(TOKENIZERS)}.")
    with readable_weights(folder / name, "tokenizer"), quiet_libraries():
        return getattr(transformers, kind).from_pretrained(folder / name, local_files_only=True)


def read_module(
    reader: Callable[..., Any], folder: Path, variant: str | None, role: str
) -> torch.nn.Module:
    """One component; its files are known to exist, so any failure means that they are damaged.

    Raises:
        WeightsMissing: they are, or lack tensors.
    """
    with readable_weights(folder, role), quiet_libraries():
        module, info = reader(
            folder,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    missing = [k for k in info["missing_keys"] if not any(u in k for u in UNUSED_PARAMETERS)]
    if missing:
        raise WeightsMissing(
            f"Weights for the {role} in '{folder}' lack {len(missing)} tensors, first "
            f"'{min(missing)}'. Expected all of them; copy or download the model again."
        )
    return module


def _single_file_parts(
    config: SingleFilePriorConfig, device: torch.device, dtype: torch.dtype
) -> PriorParts:
    path, folder = Path(config.path).expanduser(), Path(config.config).expanduser()
    check_safetensors_file(path, role=ROLE)
    _refuse_edm_file(path)
    index = read_index(folder)
    towers = tower_names(index)
    pipeline = _open_single_file(path, folder, index, dtype, leave_out=_flatten(towers))
    text_device, text_dtype = _text_place(config.memory, device, dtype)

    def load_towers() -> list[TextTower]:
        opened = _open_single_file(path, folder, index, text_dtype, leave_out=("unet", "vae"))
        return [TextTower(getattr(opened, t), getattr(opened, e)) for t, e in towers]

    def load_tokenizers() -> list[Callable]:
        return [_read_tokenizer(folder, name, index) for name, _ in towers]

    vae = pipeline.vae
    return PriorParts(
        unet=pipeline.unet.to(device),
        vae=vae.to(device, vae_dtype(config.memory, vae.config, dtype)),
        text=TextStack(
            load_towers, _text_layout(pipeline.unet), device=text_device, words=load_tokenizers
        ),
        scheduler_config=dict(pipeline.scheduler.config),
        fingerprint=fingerprint_files([path, *_settings_files(folder)], str(dtype)),
        zero_negative=bool(index.get("force_zeros_for_empty_prompt", False)),
        aesthetics=_aesthetics(index, config),
    )


def _refuse_edm_file(path: Path) -> None:
    from safetensors import safe_open

    with readable_weights(path, ROLE), safe_open(path, framework="pt") as file:
        refuse_edm(set(file.keys()), path, role=ROLE)


def _open_single_file(
    path: Path,
    folder: Path,
    index: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    leave_out: Sequence[str],
) -> Any:
    """A stock pipeline from the file, without the components named."""
    import diffusers

    pipeline_class = getattr(diffusers, index["_class_name"])
    absent = dict.fromkeys(("feature_extractor", "image_encoder", *leave_out))
    with readable_weights(path, ROLE), quiet_libraries():
        return pipeline_class.from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=dtype, **absent
        )


def _flatten(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [name for pair in pairs for name in pair]


def _settings_files(folder: Path) -> list[Path]:
    """Configuration and tokenizer files of a diffusers folder."""
    return [*folder.glob("*/*.json"), *folder.glob("*/*.txt"), folder / "model_index.json"]


def _text_layout(unet: torch.nn.Module) -> str:
    is_sdxl = unet.config.addition_embed_type == "text_time"
    return "penultimate_pooled" if is_sdxl else "last_hidden"


@contextlib.contextmanager
def readable_weights(path: Path, role: str) -> Iterator[None]:
    """Turn a library's complaint about a model file into one line that names the file.

    Readers of damaged files raise whatever their parser met, so every type counts here.
    """
    try:
        yield
    except StudioError:
        raise
    except Exception as error:
        if is_out_of_memory(error):  # the file is not to blame
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsMissing(
            f"Weights for the {role} cannot be read: '{path}' ({reason}). "
            "Expected undamaged files in stock layout; copy or download the model again."
        ) from error


def read_tensors(files: Iterable[Path], role: str) -> dict[str, Tensor]:
    """All tensors of some safetensors files, such as the parts of a large model.

    Raises:
        WeightsMissing: naming the file that cannot be read.
    """
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for file in files:
        with readable_weights(file, role):
            tensors.update(load_file(file))
    return tensors


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Only errors from the model libraries, and no progress bars, while files are read."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    before = [(log.get_verbosity(), log.is_progress_bar_enabled()) for log in libraries]
    for log in libraries:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, (verbosity, has_bar) in zip(libraries, before, strict=True):
            log.set_verbosity(verbosity)
            if has_bar:
                log.enable_progress_bar()
