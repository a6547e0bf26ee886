"""The adapters' recipes on the smallest scale, from the shipped pocket prior: two steps each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from image_tools.control.control_configs import ControlConfig
from image_tools.control.control_weights import read_controlnet
from image_tools.control.uni_weights import read_uni
from image_tools.diffusion.loading import load_folder
from image_tools.editing.edit_weights import read_edit_unet
from image_tools.pocket.paths import POCKET_FOLDER
from studio.errors import ConfigError
from studio.evaluation.controls import ControlEvalConfig
from studio.evaluation.edits import EditEvalConfig
from studio.training import adapters_control, adapters_uni
from studio.training.adapter_parts import draw_velocity, encode_views, step_generator
from studio.training.adapters_control import ControlRecipe, train_control
from studio.training.adapters_edit import EditRecipe, EncodedPairs, train_edit
from studio.training.adapters_uni import UniRecipe, train_uni
from studio.training.buffer_views import CONDITIONS, BufferViewConfig
from studio.training.denoiser import LatentCache
from studio.training.loop import LoopConfig
from studio.training.pair_cache import PairConfig

CPU = torch.device("cpu")
LOOP = LoopConfig(steps=2, warmup=1, log_every=1)
VIEWS = BufferViewConfig(views=4)
EVALUATION = ControlEvalConfig(samples=2, steps=1)
CONTROL = ControlRecipe(VIEWS, batch_size=2, loop=LOOP, evaluation=EVALUATION)
UNI = UniRecipe(VIEWS, batch_size=2, local_loop=LOOP, content_loop=LOOP, evaluation=EVALUATION)
EDIT = EditRecipe(
    pairs=PairConfig(edits=4),
    generated=replace(EditRecipe().generated, edits=0),
    batch_size=2,
    loop=LOOP,
    evaluation=EditEvalConfig(samples=2, steps=1),
)


def quiet(*_: object) -> None:
    """A log that nobody reads."""


def train_depth(work: Path, views: Path | None = None, log=quiet) -> dict[str, float]:
    """The depth ControlNet."""
    return train_control(
        "depth",
        CONTROL,
        work,
        start=POCKET_FOLDER,
        out=work / "out",
        device=CPU,
        log=log,
        views=views,
    )


@pytest.fixture(scope="module")
def prior():
    return load_folder(POCKET_FOLDER, CPU)


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A trained depth control: its work folder and figures."""
    work = tmp_path_factory.mktemp("control")
    return work, train_depth(work)


@pytest.fixture(scope="module")
def uni(tmp_path_factory: pytest.TempPathFactory, control) -> tuple[Path, dict[str, float]]:
    """Trained adapters for all maps and for colours, from the control's views."""
    work, out = tmp_path_factory.mktemp("uni"), {"start": POCKET_FOLDER, "device": CPU}
    return work, train_uni(UNI, work, out=work / "out", log=quiet, views=control[0], **out)


@pytest.fixture(scope="module")
def edit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """A trained edit model."""
    work = tmp_path_factory.mktemp("edit")
    figures = train_edit(EDIT, work, start=POCKET_FOLDER, out=work / "out", device=CPU, log=quiet)
    return work, figures


def test_a_control_is_a_stock_folder_in_half_precision(control, prior) -> None:
    from diffusers import ControlNetModel

    out = control[0] / "out"
    stock = ControlNetModel.from_pretrained(out, local_files_only=True)
    assert list(stock.config.conditioning_embedding_out_channels) == [16, 32, 96]
    tensors = load_file(out / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    read = read_controlnet(ControlConfig(weights=str(out)))
    assert read.config.cross_attention_dim == prior.unet.config.cross_attention_dim
    moved = (read.conv_in.weight - prior.unet.conv_in.weight).abs().max()
    assert 0.0 < moved < 0.01, "two steps from the prior's encoder"


def test_keypoints_train_a_control_from_the_same_views(control, tmp_path: Path) -> None:
    figures = train_control(
        "keypoints",
        CONTROL,
        tmp_path,
        start=POCKET_FOLDER,
        out=tmp_path / "out",
        device=CPU,
        log=quiet,
        views=control[0],
    )
    assert "keypoints_silhouette" in figures
    name = "diffusion_pytorch_model.safetensors"
    mine, depth = (load_file(work / "out" / name) for work in (tmp_path, control[0]))
    assert any(not torch.equal(tensor, depth[key]) for key, tensor in mine.items())


def test_uni_adapters_are_in_one_file_for_this_prior(uni, prior) -> None:
    local, content = read_uni(uni[0] / "out" / "uni.safetensors", prior.unet)
    assert local.settings == UNI.local
    assert content.settings == UNI.content
    assert any(conv.weight.abs().max() > 0 for conv in local.controlnet_down_blocks)


def test_an_edit_model_is_a_stock_denoiser_with_channels_for_the_image(edit, prior) -> None:
    unet = read_edit_unet(edit[0] / "out")
    assert unet.config.in_channels == 8
    assert unet.conv_in.weight[:, 4:].abs().max() > 0
    name = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    before, after = prior.unet.state_dict()[name], unet.state_dict()[name]
    # Left preconditioned, they would be of another size altogether.
    assert (before - after).norm() < 0.5 * before.norm()


@pytest.mark.parametrize("which", ["control", "uni", "edit"])
def test_cards_and_figures_lie_beside_the_weights(which: str, request) -> None:
    work, figures = request.getfixturevalue(which)
    card = json.loads((work / "out" / "training.json").read_text())
    told = json.loads((work / "out" / "evaluation.json").read_text())["figures"]
    assert len(card["facts"]["start"]) == 16
    assert {name: figure["value"] for name, figure in told.items()} == figures
    shares = [f for n, f in told.items() if "gain" not in n and not n.endswith("_db")]
    assert shares
    assert all(0.0 <= f["value"] <= 1.0 for f in shares)
    told_apart = [f for f in shares if f["low"] is not None]  # of few samples there is none
    assert all(0.0 <= f["low"] <= f["high"] <= 1.0 for f in told_apart)
    texts = [path.read_text() for path in (work / "out").rglob("*.json")]
    assert not [text for text in texts if str(work) in text or str(POCKET_FOLDER) in text]


def test_figures_are_told_for_each_map_and_their_baselines(uni) -> None:
    shown = {name.rsplit("_", 1)[0] for name in uni[1] if name.endswith("_silhouette")}
    assert shown == {"plain", "true", "all", *CONDITIONS}
    assert {"look_color", "plain_look_color", "all_gain"} <= uni[1].keys()


def test_a_finished_recipe_is_not_repeated_and_measures_the_same(control) -> None:
    work, figures = control
    lines: list[str] = []
    assert train_depth(work, log=lines.append) == figures
    assert all(line.startswith("sampled") for line in lines)


def test_an_interrupted_recipe_ends_in_the_same_bits(control, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("step 1/"):
            raise KeyboardInterrupt

    views = control[0]
    with pytest.raises(KeyboardInterrupt):
        train_depth(tmp_path, views, log=interrupt)
    train_depth(tmp_path, views)
    name = "diffusion_pytorch_model.safetensors"
    whole, parts = (load_file(work / "out" / name) for work in (views, tmp_path))
    assert all(torch.equal(tensor, parts[key]) for key, tensor in whole.items())


@pytest.mark.parametrize("preset", ["cpu", "gpu"])
def test_controls_and_uni_can_share_their_views(preset: str) -> None:
    assert adapters_control.PRESETS[preset].views == adapters_uni.PRESETS[preset].views


def test_another_prior_and_other_views_are_refused(control, tmp_path: Path) -> None:
    (tmp_path / "start.json").write_text('{"unet": "0123456789abcdef"}')
    with pytest.raises(ConfigError, match="began from another model"):
        train_depth(tmp_path)
    other = replace(VIEWS, seed=99)
    with pytest.raises(ConfigError, match="holds views of other settings"):
        encode_views(control[0], other, POCKET_FOLDER, device=CPU, log=quiet)


def test_batches_hold_a_view_with_its_caption_or_none(control) -> None:
    data = encode_views(control[0], VIEWS, POCKET_FOLDER, device=CPU, log=quiet)
    rows = np.array([0, 2])
    latents, text = data.batch(rows, np.array([False, True]))
    assert np.array_equal(latents.numpy(), data.cache.latents[rows].astype(np.float32))
    states = torch.from_numpy(np.array(data.cache.text)).float()
    assert torch.equal(text.tokens[0], states[data.cache.text_index[0]])
    assert torch.equal(text.tokens[1], states[0])


def test_pairs_of_two_caches_are_one_set(edit) -> None:
    """Row 2k is before, row 2k + 1 after; the second cache follows the first."""
    cache = LatentCache(edit[0] / "pairs_latents")
    data = EncodedPairs([cache, cache])
    assert len(data) == 8
    before, after, text = data.batch(np.array([1, 5]), np.array([False, False]))
    assert torch.equal(before[0], before[1])
    assert np.array_equal(before[0].numpy(), cache.latents[2].astype(np.float32))
    assert np.array_equal(after[0].numpy(), cache.latents[3].astype(np.float32))
    assert torch.equal(text.tokens[0], text.tokens[1])
    _, _, empty = data.batch(np.array([1]), np.array([True]))
    assert torch.equal(empty.tokens[0], torch.from_numpy(np.array(cache.text[0])).float())


def test_the_target_is_the_prior_s_own_and_depends_on_the_step_alone(prior) -> None:
    """z_t = alpha x0 + sigma eps and v = alpha eps - sigma x0 give x0 = alpha z_t - sigma v."""
    latents = torch.randn(4, 4, 16, 16, generator=step_generator(1, 1))
    noisy, again = (draw_velocity(prior, latents, step_generator(3, 7), tilt=1.0) for _ in "ab")
    assert torch.equal(noisy.z_t, again.z_t)
    alpha_bar = prior.alphas_cumprod[noisy.t].reshape(-1, 1, 1, 1)
    clean = alpha_bar.sqrt() * noisy.z_t - (1 - alpha_bar).sqrt() * noisy.target
    torch.testing.assert_close(clean, latents, atol=1e-5, rtol=0)
    quarters = (noisy.t * 4 // prior.num_train_timesteps).tolist()
    assert sorted(quarters) == [0, 1, 2, 3], "one timestep from each part of the schedule"
