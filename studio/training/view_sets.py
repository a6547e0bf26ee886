"""A disk cache of toybox objects seen from four sides, as latents with their cameras.

The sets are what MVDream renders of Objaverse (arXiv 2308.16512, section 4): orthogonal views from
one elevation, the first at any azimuth. Captions have no view word, because the camera says it.

The folder holds ``latents.npy`` and ``cameras.npy`` (memory mapped), the captions with a count of
what is finished, and the text states of the distinct captions. Rendering is resumable, and set k
depends only on (seed, k).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from image_tools.diffusion.camera_embedding import CAMERA_WIDTH, camera_vector
from scenes.toybox.samples import SampleConfig, ToySampler, ToyViewSet
from studio.errors import ConfigError
from studio.training.denoiser import TEXT_WIDTH
from studio.training.render_pool import draw_rows
from studio.training.text import MAX_TOKENS, encode_captions

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ViewSetCache", "ViewSetConfig", "cache_set_text", "render_view_sets"]

CHUNK = 100  # sets between two saves
ENCODED_AT_ONCE = 40  # images in one call of the autoencoder


@dataclass(frozen=True)
class ViewSetConfig:
    """What the multi-view training data shows."""

    sets: int = 9_000
    """Objects."""
    views: int = 4
    """Views of each, at equal steps of azimuth."""
    elevation_deg: tuple[float, float] = (0.0, 30.0)
    """Range of the elevation, which the views of a set share."""
    image_size: int = 64
    """Height and width in pixels."""
    seed: int = 21
    """Seed of objects and cameras."""

    def sampler(self) -> ToySampler:
        """Single objects of the training combinations; background and camera distances as in 2D."""
        return ToySampler(
            SampleConfig(image_size=self.image_size, pairs=0.0, elevation_deg=self.elevation_deg)
        )


class ViewSetCache:
    """Read access to a finished or growing cache.

    Attributes:
        latents: ``[n, views, 4, s, s]`` float16, scaled.
        cameras: ``[n, views, 16]`` float32 camera vectors.
        captions: the n captions.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``; only finished sets are visible."""
        state = json.loads((folder / "state.json").read_text())
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")[: state["done"]]
        self.cameras = np.load(folder / "cameras.npy", mmap_mode="r")[: state["done"]]
        self.captions: list[str] = state["captions"]
        self._folder = folder

    def __len__(self) -> int:
        """Number of finished sets."""
        return len(self.latents)

    def text_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Text states ``[m, 24, 384]`` (row 0: empty caption) and the row of each set."""
        text = np.load(self._folder / "text.npy", mmap_mode="r")
        return text, np.load(self._folder / "text_index.npy")


def _key(config: ViewSetConfig, vae: AutoencoderKL) -> str:
    """What the latents depend on besides the code: the settings and the encoder's weights."""
    digest = hashlib.sha256(json.dumps(asdict(config)).encode())
    encoder = {n: p for n, p in vae.state_dict().items() if n.startswith(("encoder", "quant"))}
    for name, parameter in sorted(encoder.items()):
        digest.update(name.encode())
        digest.update(parameter.float().cpu().numpy().tobytes())
    digest.update(str(vae.config.scaling_factor).encode())
    return digest.hexdigest()


@torch.no_grad()
def _encode(sets: list[ToyViewSet], vae: AutoencoderKL) -> np.ndarray:
    """Scaled latent means ``[n, views, 4, s, s]``."""
    images = torch.from_numpy(np.stack([s.rgb for s in sets])).to(vae.device)
    flat = images.flatten(0, 1).permute(0, 3, 1, 2).float() * 2.0 - 1.0
    parts = [vae.encode(part).latent_dist.mean for part in flat.split(ENCODED_AT_ONCE)]
    latents = torch.cat(parts) * vae.config.scaling_factor
    return latents.unflatten(0, images.shape[:2]).half().cpu().numpy()


def _open_arrays(folder: Path, config: ViewSetConfig, vae: AutoencoderKL, is_new: bool):
    side = config.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
    n, views, mode = config.sets, config.views, "w+" if is_new else "r+"
    open_array = np.lib.format.open_memmap
    if not is_new:
        return open_array(folder / "latents.npy", mode), open_array(folder / "cameras.npy", mode)
    shape = (n, views, vae.config.latent_channels, side, side)
    latents = open_array(folder / "latents.npy", mode, np.float16, shape)
    cameras = open_array(folder / "cameras.npy", mode, np.float32, (n, views, CAMERA_WIDTH))
    return latents, cameras


def render_view_sets(
    folder: Path,
    config: ViewSetConfig,
    vae: AutoencoderKL,
    *,
    log: Callable[[str], None],
) -> ViewSetCache:
    """Render and encode the sets into ``folder``, continuing where an earlier call stopped.

    Args:
        folder: created if absent.
        config: the distribution, and how many sets in the end.
        vae: encodes the images; its latents are stored scaled.
        log: called after each chunk.

    Raises:
        ConfigError: ``folder`` holds a cache of other settings or of another autoencoder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state_path, key = folder / "state.json", _key(config, vae)
    is_new = not state_path.exists()
    state = {"done": 0, "captions": [], "key": key}
    if not is_new:
        state = json.loads(state_path.read_text())
    if state["key"] != key:
        raise ConfigError(
            f"{folder} holds view sets of other settings or of another autoencoder. "
            "Name another folder, or delete this one."
        )
    latents, cameras = _open_arrays(folder, config, vae, is_new)
    drawn = draw_rows(partial(_draw, config), range(state["done"], config.sets))
    while sets := list(islice(drawn, CHUNK)):
        rows = range(state["done"], state["done"] + len(sets))
        latents[rows.start : rows.stop] = _encode(sets, vae)
        for k, views in zip(rows, sets):
            cameras[k] = camera_vector(views.cameras.c2w).numpy()
        state["captions"] += [views.caption for views in sets]
        state["done"] = rows.stop
        latents.flush()
        cameras.flush()
        partial_state = state_path.with_suffix(".tmp")
        partial_state.write_text(json.dumps(state))
        partial_state.replace(state_path)
        log(f"view sets {rows.stop}/{config.sets}")
    return ViewSetCache(folder)


@lru_cache(maxsize=1)
def _sampler(config: ViewSetConfig) -> ToySampler:
    return config.sampler()


def _draw(config: ViewSetConfig, k: int) -> ToyViewSet:
    return _sampler(config).view_set(np.random.default_rng([config.seed, k]), config.views)


@torch.no_grad()
def cache_set_text(
    folder: Path,
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    log: Callable[[str], None],
) -> None:
    """Encode the distinct captions of a finished cache once."""
    captions = ViewSetCache(folder).captions
    if (folder / "text_index.npy").exists() and len(np.load(folder / "text_index.npy")) == len(
        captions
    ):
        return
    distinct = ["", *sorted(set(captions))]
    text = np.empty((len(distinct), MAX_TOKENS, TEXT_WIDTH), dtype=np.float16)
    for start in range(0, len(distinct), 512):
        part: Tensor = encode_captions(encoder, tokenizer, distinct[start : start + 512])
        text[start : start + 512] = part.half().cpu().numpy()
        log(f"captions {start}/{len(distinct)}")
    row = {caption: k for k, caption in enumerate(distinct)}
    np.save(folder / "text.npy", text)
    np.save(folder / "text_index.npy", np.array([row[c] for c in captions]))
