"""The pocket recipe on the smallest scale: 50 images, 2 steps, a random text model."""

from __future__ import annotations

import json
import string
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from studio.errors import ConfigError
from studio.training.contrast import ContrastConfig
from studio.training.contrast_bindings import read_pair
from studio.training.contrast_views import WrongViews
from studio.training.denoiser import (
    TEXT_WIDTH,
    DenoiserConfig,
    LatentCache,
    build_scheduler,
    cache_text,
    stratified_timesteps,
)
from studio.training.image_cache import ImageCache
from studio.training.loop import LoopConfig
from studio.training.mixed_latents import MixedLatents
from studio.training.pocket import cache_refinement, refine_pocket, train_pocket
from studio.training.pocket_recipe import PRESETS, PocketConfig
from studio.training.start import frozen_parts, unet_digest
from studio.training.text import MAX_TOKENS, build_text_encoder, encode_captions, kept_tokens
from studio.training.vae import VAEConfig, build_vae, whiten_latents

SHORT = LoopConfig(steps=2, log_every=1)
TINY = PocketConfig(
    images=40,
    objects_share=0.2,
    vae=VAEConfig(widths=(8, 8, 8), batch_size=2, loop=SHORT, decoder_loop=SHORT),
    denoiser=DenoiserConfig(widths=(16, 16, 16), heads=2, batch_size=2, loop=SHORT),
)
WORDS = ("red", "green", "blue", "duck", "mug", "toy", "small", "a", "an", "view", "front", "of")


def quiet(*_: object) -> None:
    """A log that nobody reads."""


@pytest.fixture(scope="module")
def text_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT with a small WordPiece vocabulary, in the layout of all-MiniLM-L6-v2."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("minilm")
    characters = [*string.ascii_lowercase, *string.digits, *",.-"]
    # The two Greek letters are dropped by the pruning, so that every later token moves.
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "α", "##ω", *characters]
    tokens += [f"##{c}" for c in characters]
    tokens += [word for word in WORDS if word not in tokens]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    BertTokenizer(vocab=vocabulary, do_lower_case=True).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(tokens),
            hidden_size=TEXT_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=32,
        )
        BertModel(config, add_pooling_layer=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text_source: Path) -> tuple[Path, Path]:
    """The training folder and the model folder of the tiny recipe."""
    work = tmp_path_factory.mktemp("work")
    out = work / "model"
    train_pocket(
        TINY, work, text_source=text_source, out=out, device=torch.device("cpu"), log=quiet
    )
    return work, out


def test_the_result_opens_as_a_stock_pipeline_and_draws(trained: tuple[Path, Path]) -> None:
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(trained[1], local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        "a red duck",
        height=64,
        width=64,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images
    assert image.shape == (1, 64, 64, 3)
    assert np.isfinite(image).all()
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.text_encoder.config.use_attention_mask


def test_the_model_folder_tells_how_it_was_made(trained: tuple[Path, Path]) -> None:
    card = json.loads((trained[1] / "training.json").read_text())
    assert card["config"]["images"] == 40
    assert card["facts"]["unet"]["step"] == 2
    for figure in ("vae_psnr_db", "vae_objects_psnr_db"):
        assert 0.0 < card["facts"][figure] < 60.0


def test_the_model_folder_names_no_path_of_the_training_machine(trained: tuple[Path, Path]) -> None:
    texts = [path.read_text() for path in trained[1].rglob("*.json")]
    assert len(texts) >= 7
    assert not [text for text in texts if str(trained[0]) in text]


def test_weights_are_stored_in_half_precision_safetensors(trained: tuple[Path, Path]) -> None:
    from safetensors import safe_open

    files = sorted(trained[1].rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"text_encoder", "unet", "vae"}
    for file in files:
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_tensor(key).dtype for key in tensors.keys()}  # noqa: SIM118
        assert kinds <= {torch.float16, torch.int64}, file.parent.name
    assert not [f for f in trained[1].rglob("*") if f.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_whitening_decorrelates_latents_and_changes_no_reconstruction() -> None:
    torch.manual_seed(0)
    vae = build_vae(TINY.vae).eval()
    images = torch.rand(8, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(images).latent_dist.mean).sample
        whiten_latents(vae, images)
        latents = vae.encode(images).latent_dist.mean
        after = vae.decode(latents).sample
    assert torch.allclose(after, before, atol=1e-4)
    flat = latents.permute(0, 2, 3, 1).reshape(-1, 4)
    assert torch.allclose(flat.mean(0), torch.zeros(4), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), torch.eye(4), atol=1e-2)
    assert vae.config.scaling_factor == 1.0


def test_latents_have_unit_scale_by_the_stored_factor(trained: tuple[Path, Path]) -> None:
    cache = LatentCache(trained[0] / "latents")
    assert cache.latents.shape == (40, 4, 16, 16)
    assert cache.latents.astype(np.float32).std() == pytest.approx(1.0, abs=0.02)


def test_a_finished_recipe_is_not_repeated(trained: tuple[Path, Path], text_source: Path) -> None:
    work, out = trained
    caches = [*(work / "latents").iterdir(), *(work / "object_latents").iterdir()]
    before = {path: path.stat().st_mtime_ns for path in caches}
    lines: list[str] = []
    train_pocket(
        TINY,
        work,
        text_source=text_source,
        out=out,
        device=torch.device("cpu"),
        log=lines.append,
    )
    assert lines == [], "nothing was rendered, encoded or trained again"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_batches_drop_the_share_of_captions_that_is_asked_for(trained: tuple[Path, Path]) -> None:
    cache = LatentCache(trained[0] / "latents")
    empty = torch.from_numpy(cache.text[0].copy()).float()
    for dropout, low, high in ((0.0, 0.0, 0.0), (0.3, 0.2, 0.4), (1.0, 1.0, 1.0)):
        latents, text = cache.batch(np.random.default_rng(0), 400, dropout)
        assert latents.shape == (400, 4, 16, 16)
        dropped = (text == empty).all(2).all(1).float().mean().item()
        assert low <= dropped <= high


def test_batches_keep_captions_with_their_images(trained: tuple[Path, Path]) -> None:
    cache = LatentCache(trained[0] / "latents")
    latents, text = cache.batch(np.random.default_rng(3), 8, 0.0)
    for latent, states in zip(latents, text):
        image = int((cache.latents == latent.numpy()).all((1, 2, 3)).argmax())
        expected = torch.from_numpy(cache.text[cache.text_index[image]].copy()).float()
        assert torch.equal(states, expected)


def test_pruning_keeps_the_hidden_states_of_kept_words(text_source: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    build_text_encoder(text_source, tmp_path)
    source = AutoModel.from_pretrained(text_source, local_files_only=True, dtype=torch.float32)
    source = source.half().float().eval()  # the pruned model is stored in half precision
    pruned = AutoModel.from_pretrained(tmp_path / "text_encoder", local_files_only=True).eval()
    assert pruned.dtype == torch.float32
    assert pruned.config.vocab_size == source.config.vocab_size - 2
    full_words, few_words = (
        AutoTokenizer.from_pretrained(folder, local_files_only=True)
        for folder in (text_source, tmp_path / "tokenizer")
    )
    sentences = ["a red duck, front view", "", "an unheard of mug"]
    expected = encode_captions(source, full_words, sentences)
    actual = encode_captions(pruned, few_words, sentences)
    assert actual.shape == (3, MAX_TOKENS, TEXT_WIDTH)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert not torch.allclose(actual[0], actual[2], atol=1e-2)


def test_words_of_both_worlds_are_kept_however_rare() -> None:
    frequent = [f"word{k}" for k in range(50)]
    rare = ["mushroom", "purple", "striped", "urinal", "zebra"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", *frequent, *rare]
    kept = kept_tokens({token: k for k, token in enumerate(tokens)}, limit=20)
    assert len(kept) == 20
    assert set(rare) - set(kept) == {"zebra"}, "no caption speaks of one"
    assert {"a", "##a", "word0"} <= set(kept)
    assert kept == [token for token in tokens if token in set(kept)], "in the order of the source"


def test_unknown_words_fall_back_to_pieces(text_source: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    build_text_encoder(text_source, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    assert tokenizer.tokenize("red zebra") == ["red", "z", "##e", "##b", "##r", "##a"]


def test_text_is_encoded_again_when_captions_change(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    """The stamp is a hash of the captions, so a stale cache cannot be used."""
    from transformers import AutoModel, AutoTokenizer

    folder = trained[0] / "text"
    encoder = AutoModel.from_pretrained(folder / "text_encoder", local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    images = ImageCache(trained[0] / "images")
    lines: list[str] = []
    for captions in (["a red duck"] * 40, ["a red duck"] * 40, ["a blue mug"] * 40):
        images.captions = captions
        cache_text(tmp_path, images, encoder, tokenizer, log=lines.append)
    assert len(lines) == 2


def test_the_scheduler_is_stable_diffusion_s() -> None:
    """Scaled-linear betas: alpha_bar of SD 1.5 at the ends of the schedule."""
    alphas_cumprod = build_scheduler().alphas_cumprod
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    assert torch.allclose(alphas_cumprod, torch.cumprod(1 - betas, 0))
    assert alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-4)


def test_the_presets_are_the_same_model() -> None:
    """A prior trained on a GPU loads wherever the one trained on a CPU does."""
    cpu, gpu = PRESETS["cpu"], PRESETS["gpu"]
    assert cpu.denoiser.widths == gpu.denoiser.widths
    same_length = {"loop": cpu.vae.loop, "decoder_loop": cpu.vae.decoder_loop}
    assert replace(gpu.vae, batch_size=cpu.vae.batch_size, **same_length) == cpu.vae


def refine(start: Path, work: Path) -> Path:
    """Two more steps from a model."""
    config = replace(TINY, seed=2)
    cpu = torch.device("cpu")
    refine_pocket(config, work, start=start, out=work / "model", device=cpu, log=quiet)
    return work / "model"


def test_a_finished_model_s_denoiser_is_trained_on_and_all_else_is_kept(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out = refine(trained[1], tmp_path)
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        file = f"{part}.safetensors"
        assert (out / file).read_bytes() == (trained[1] / file).read_bytes(), part
    before, after = (
        load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (trained[1], out)
    )
    assert before.keys() == after.keys()
    change = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0.0 < change < 0.01, "two steps from where the first training ended, not a new network"


def test_a_refinement_compares_right_views_with_wrong_ones(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    contradict = WrongViews.contradict

    def recorded(caption: str, rng: np.random.Generator) -> str:
        compared.append(caption)
        return contradict(caption, rng)

    monkeypatch.setattr(WrongViews, "contradict", staticmethod(recorded))
    contrast = ContrastConfig(share=0.75, least_difference=0.0)
    denoiser = replace(TINY.denoiser, batch_size=4, contrast=contrast)
    refine_pocket(
        replace(TINY, seed=2, denoiser=denoiser),
        tmp_path / "work",
        start=trained[1],
        out=tmp_path / "out",
        device=torch.device("cpu"),
        log=quiet,
    )
    assert len(compared) == denoiser.loop.steps, "of four rows three quarters, for one image each"


def test_a_refinement_sees_pairs_and_compares_who_is_what(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    contrast = ContrastConfig(share=0.75, bindings=0.9, least_difference=0.0)
    denoiser = replace(TINY.denoiser, batch_size=8, contrast=contrast)
    config = replace(TINY, seed=2, pair_images=6, denoiser=denoiser)
    work, out = tmp_path / "work", tmp_path / "out"
    cpu = torch.device("cpu")
    refine_pocket(config, work, start=trained[1], out=out, device=cpu, log=quiet)
    pairs = ImageCache(work / "pairs").captions
    assert len(pairs) == 6
    assert all(read_pair(caption) for caption in pairs)
    assert LatentCache(work / "pair_latents").latents.shape == (6, 4, 16, 16)
    card = json.loads((out / "training.json").read_text())
    assert card["refinements"][-1]["pair_images"] == 6


def test_autoencoder_and_denoiser_of_a_model_are_trained_on_together(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out, cpu = tmp_path / "model", torch.device("cpu")
    still = replace(TINY.vae.loop, learning_rate=0.0, warmup=0)
    config = replace(TINY, seed=2, vae=replace(TINY.vae, loop=still, decoder_loop=still))
    train_pocket(
        config,
        tmp_path,
        text_source=trained[1],
        out=out,
        device=cpu,
        log=quiet,
        start=trained[1],
    )
    text = "text_encoder/model.safetensors"
    assert (out / text).read_bytes() == (trained[1] / text).read_bytes()
    assert unet_digest(out) != unet_digest(trained[1])
    assert json.loads((out / "training.json").read_text())["start"] == unet_digest(trained[1])
    images = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before, after = (
            frozen_parts(folder, cpu)[0].encode(images).latent_dist.mean
            for folder in (trained[1], out)
        )
    # Without a step of training only the whitening is new, and it keeps axes as they are.
    for channel in range(before.shape[1]):
        pair = torch.stack([before[:, channel].flatten(), after[:, channel].flatten()])
        assert float(torch.corrcoef(pair)[0, 1]) > 0.9


def test_the_card_of_a_model_tells_each_training_it_went_through(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    once = refine(trained[1], tmp_path / "once")
    twice = refine(once, tmp_path / "twice")
    first, card = (json.loads((f / "training.json").read_text()) for f in (trained[1], twice))
    assert card["facts"] == first["facts"]
    assert [step["start"] for step in card["refinements"]] == [
        unet_digest(trained[1]),
        unet_digest(once),
    ]


def test_a_refinement_goes_on_only_with_the_model_it_began_from(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    out = refine(trained[1], tmp_path)
    with pytest.raises(ConfigError, match="began from another model"):
        refine(out, tmp_path)


def test_a_refinement_s_denoiser_goes_on_only_with_the_images_it_has_seen(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    refine(trained[1], tmp_path)
    other = replace(TINY, seed=2, objects_share=0.0)
    cpu = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"has seen .*'object_images': 10.* is asked for"):
        cache_refinement(other, tmp_path, start=trained[1], device=cpu, log=quiet)
    (tmp_path / "images.json").unlink()
    with pytest.raises(ConfigError, match=r"has seen .*'object_images': 0.* is asked for"):
        refine(trained[1], tmp_path)


def test_latents_of_both_worlds_are_drawn_as_one_with_their_captions(
    trained: tuple[Path, Path],
) -> None:
    toys, objects = (LatentCache(trained[0] / name) for name in ("latents", "object_latents"))
    mixed = MixedLatents(trained[0] / "latents", trained[0] / "object_latents")
    assert mixed.latents.shape == (50, 4, 16, 16)
    for row, (cache, own) in {
        0: (toys, 0),
        39: (toys, 39),
        40: (objects, 0),
        49: (objects, 9),
    }.items():
        latents, text = mixed.at(np.array([row]))
        expected, states = cache.at(np.array([own]))
        assert torch.equal(latents, expected)
        assert torch.equal(text, states)
    latents, _ = mixed.batch(np.random.default_rng(0), 2000, 1.0)
    own = torch.from_numpy(np.array(objects.latents)).float()
    is_object = (latents[:, None] == own).flatten(2).all(2).any(1)
    assert is_object.float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_another_share_leaves_the_toybox_s_latents_as_they_are(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    cpu, before = torch.device("cpu"), {}
    for share in (0.0, 0.2):
        config = replace(TINY, seed=2, objects_share=share)
        cache_refinement(config, tmp_path, start=trained[1], device=cpu, log=quiet)
        files = {path: path.stat().st_mtime_ns for path in (tmp_path / "latents").iterdir()}
        assert not before or files == before
        before = files


def test_without_objects_the_recipe_reads_caches_of_the_toybox_alone(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    config = replace(TINY, seed=2, objects_share=0.0)
    cpu = torch.device("cpu")
    latents = cache_refinement(config, tmp_path, start=trained[1], device=cpu, log=quiet)
    assert latents.latents.shape == (40, 4, 16, 16)
    assert not (tmp_path / "objects").exists()


def test_the_card_of_a_refinement_tells_how_many_images_show_objects(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    card = json.loads((refine(trained[1], tmp_path) / "training.json").read_text())
    assert card["refinements"][0]["images"] == 40
    assert card["refinements"][0]["object_images"] == 10


@pytest.mark.parametrize(("share", "objects"), [(0.0, 0), (0.2, 10_000), (0.5, 40_000)])
def test_objects_come_on_top_of_the_toybox_for_their_share(share: float, objects: int) -> None:
    assert PocketConfig(images=40_000, objects_share=share).object_images == objects


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_leaves_no_toybox_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"objects_share is .* at least 0 and less than 1"):
        PocketConfig(objects_share=share)


@pytest.mark.parametrize("tilt", [1.0, 1.5, 3.0])
def test_timesteps_follow_the_tilted_density(tilt: float) -> None:
    """The mean of p x^(p-1) over 0..1 is p / (p + 1)."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([stratified_timesteps(8, 1000, generator, tilt=tilt) for _ in range(500)])
    assert draws.min() >= 0
    assert draws.max() <= 999
    assert draws.float().mean().item() / 1000 == pytest.approx(tilt / (tilt + 1), abs=0.005)
