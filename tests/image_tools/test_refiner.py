"""SDXL refiners as priors: one text encoder and quality scores, equal to the stock pipeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from image_tools.configs import AestheticsConfig, DiffusersPriorConfig
from image_tools.diffusion.conditions import TextEmbedding, cat_embeddings, size_conditions
from image_tools.diffusion.loading import load_folder, load_prior
from image_tools.errors import UnsupportedModel
from tests.tiny_models import write_refiner

CPU = torch.device("cpu")
PROMPT, NEGATIVE = "a purple duck", "blurry"
IMAGE_SIZE = 16


@pytest.fixture(scope="module")
def refiner(tmp_path_factory) -> Path:
    """Folder of a tiny refiner."""
    return write_refiner(tmp_path_factory.mktemp("refiner") / "refiner")


def _record_inputs(unet, inputs: list) -> torch.utils.hooks.RemovableHandle:
    def keep(_, args, kwargs):
        names = ("encoder_hidden_states", "added_cond_kwargs")
        inputs.append({"latents": args[0], "t": args[1], **{n: kwargs[n] for n in names}})

    return unet.register_forward_pre_hook(keep, with_kwargs=True)


def _stock_call(folder: Path) -> tuple[dict, torch.Tensor]:
    """Inputs and output of the stock pipeline's first denoiser call, [negative, positive]."""
    from diffusers import StableDiffusionXLImg2ImgPipeline

    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    inputs, outputs = [], []
    _record_inputs(pipeline.unet, inputs)
    pipeline.unet.register_forward_hook(lambda _, args, output: outputs.append(output[0]))
    image = torch.rand(1, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(0))
    pipeline(
        PROMPT, image=image, negative_prompt=NEGATIVE, strength=0.3, num_inference_steps=4,
        guidance_scale=5.0, generator=torch.Generator().manual_seed(1), output_type="latent",
    )  # fmt: skip
    return inputs[0], outputs[0]


def test_denoiser_gets_what_the_stock_pipeline_gives_it(refiner):
    stock, stock_output = _stock_call(refiner)
    prior, inputs = load_folder(refiner, CPU), []
    cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([NEGATIVE])
    hook = _record_inputs(prior.unet, inputs)
    with torch.no_grad():
        output = prior.predict_output(
            stock["latents"], stock["t"].long().reshape(1), cat_embeddings([uncond, cond])
        )
    hook.remove()
    ours = inputs[0]
    added, stock_added = ours["added_cond_kwargs"], stock["added_cond_kwargs"]
    assert stock_added["time_ids"].tolist() == [[16, 16, 0, 0, 2.5], [16, 16, 0, 0, 6]]
    assert torch.equal(added["time_ids"], stock_added["time_ids"])
    close = {"atol": 1e-6, "rtol": 1e-5}
    torch.testing.assert_close(added["text_embeds"], stock_added["text_embeds"], **close)
    torch.testing.assert_close(
        ours["encoder_hidden_states"], stock["encoder_hidden_states"], **close
    )
    torch.testing.assert_close(output, stock_output, **close)


def test_refiner_has_the_second_encoder_alone(refiner):
    prior = load_folder(refiner, CPU)
    assert len(prior.text.towers) == 1
    text = prior.encode_prompt([PROMPT])
    assert text.tokens.shape == (1, 77, 16)
    assert text.pooled.shape == (1, 16)


def test_empty_negative_prompt_is_spoken_where_the_model_says_so(refiner):
    prior = load_folder(refiner, CPU)
    assert prior.encode_negative([""]).tokens.abs().sum() > 0
    assert prior.encode_negative([""]).aesthetic.tolist() == [2.5]


def test_scores_come_from_the_configuration_and_change_the_prediction(refiner):
    def predict(aesthetics: AestheticsConfig) -> torch.Tensor:
        prior = load_prior(DiffusersPriorConfig(model=str(refiner), aesthetics=aesthetics), CPU)
        cond, uncond = prior.encode_prompt([PROMPT]), prior.encode_negative([""])
        scores = (cond.aesthetic.item(), uncond.aesthetic.item())
        assert scores == (aesthetics.positive, aesthetics.negative)
        with torch.no_grad():
            return prior.guided_noise(
                torch.ones(2, 4, 8, 8), torch.tensor([100, 200]), cond, uncond, 5.0
            )

    usual = predict(AestheticsConfig())
    assert torch.equal(usual, predict(AestheticsConfig(positive=6.0, negative=2.5)))
    assert (usual - predict(AestheticsConfig(positive=1.0))).abs().max() > 1e-4
    assert (usual - predict(AestheticsConfig(negative=9.0))).abs().max() > 1e-4


@pytest.mark.parametrize("scores", [{"positive": -1.0}, {"negative": 10.5}])
def test_scores_outside_the_scale_are_refused(scores):
    with pytest.raises(ValueError, match="expected 0 to 10"):
        AestheticsConfig(**scores)


def test_score_travels_with_its_row():
    tokens = torch.zeros(2, 3, 4)
    good, bad = (TextEmbedding(tokens).with_aesthetic(score) for score in (6.0, 2.0))
    mixed = cat_embeddings([good, bad]).select(torch.tensor([3, 0]))
    assert mixed.aesthetic.tolist() == [2.0, 6.0]
    assert good.lerp(bad, torch.tensor([0.25, 1.0])).aesthetic.tolist() == [5.0, 2.0]
    assert good.select(torch.tensor([0])).expand(3).aesthetic.tolist() == [6.0] * 3
    assert size_conditions(mixed, (32, 32)).tolist() == [[32, 32, 0, 0, 2], [32, 32, 0, 0, 6]]


def test_two_encoder_base_model_is_told_sizes_and_no_score(tiny_pipelines):
    prior, inputs = load_folder(tiny_pipelines["sdxl"], CPU), []
    cond = prior.encode_prompt([PROMPT])
    assert cond.aesthetic is None
    hook = _record_inputs(prior.unet, inputs)
    with torch.no_grad():
        prior.predict_noise(torch.zeros(1, 4, 8, 8), torch.tensor([10]), cond)
    hook.remove()
    assert inputs[0]["added_cond_kwargs"]["time_ids"].tolist() == [[16, 16, 0, 0, 16, 16]]
    assert len(prior.text.towers) == 2


@pytest.mark.parametrize(("kind", "flag"), [("refiner", False), ("sdxl", True)])
def test_index_that_contradicts_the_denoiser_is_explained(
    refiner, tiny_pipelines, tmp_path, kind, flag
):
    source = refiner if kind == "refiner" else tiny_pipelines["sdxl"]
    folder = shutil.copytree(source, tmp_path / kind)
    index = json.loads((folder / "model_index.json").read_text())
    index["requires_aesthetics_score"] = flag
    (folder / "model_index.json").write_text(json.dumps(index))
    prior = load_folder(folder, CPU)
    with pytest.raises(UnsupportedModel, match="Check requires_aesthetics_score"):
        prior.predict_noise(
            torch.zeros(1, 4, 8, 8), torch.tensor([10]), prior.encode_prompt([PROMPT])
        )
