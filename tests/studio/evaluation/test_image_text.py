"""The image-text score: its network, its file, what it finds, and how ranks are counted."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from renderers.errors import ShapeError
from scenes.objects.pack import default_pack
from studio.errors import WeightsMissing
from studio.evaluation import name_retrieval
from studio.evaluation.image_backbone import STAGES, LiteBackbone, folded_weights
from studio.evaluation.image_text import (
    IMAGE_TEXT_WEIGHTS,
    ImageTextNet,
    ImageTextScorer,
    TextSide,
    load_image_text,
    save_image_text,
)
from studio.evaluation.intervals import wilson
from studio.evaluation.name_retrieval import (
    SETS,
    SIDES,
    drawn_ranks,
    name_figures,
    names_of,
    ranks,
    true_images,
    true_ranks,
)
from tests.studio.evaluation.backbones import public_weights


@pytest.fixture(scope="module")
def scorer() -> ImageTextScorer:
    """The shipped one."""
    if not IMAGE_TEXT_WEIGHTS.exists():
        pytest.skip("no weights of the image-text score: studio train image-text makes them")
    return load_image_text()


def test_folded_convolutions_are_convolutions_and_norms(generator):
    source = public_weights(generator)
    net = LiteBackbone()
    net.load_state_dict(folded_weights(source))
    x = torch.randn(2, 3, 9, 9, generator=generator)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))  # an odd side is padded alike on both sides
    y = torch.nn.functional.conv2d(padded, source["_conv_stem.weight"], stride=2)
    norms = [source[f"_bn0.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
    expected = torch.nn.functional.batch_norm(y, *norms, eps=1e-3)
    torch.testing.assert_close(net.stem(x), expected, atol=1e-4, rtol=1e-4)


def test_even_sides_are_padded_below_and_to_the_right(generator):
    """As TensorFlow does, which the weights come from."""
    net = LiteBackbone()
    x = torch.randn(1, 3, 8, 8, generator=generator)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(
        padded, net.stem.conv.weight, net.stem.conv.bias, stride=2
    )
    torch.testing.assert_close(net.stem(x), expected)


def test_the_backbone_halves_the_image_five_times(generator):
    assert 2 ** (1 + sum(stride == 2 for _, _, stride, _, _ in STAGES)) == 32
    features = LiteBackbone().eval()(torch.rand(2, 3, 64, 64, generator=generator))
    assert features.shape == (2, 1280)
    assert 0.0 <= features.min() <= features.max() <= 6.0


def test_the_shipped_file_is_small_half_precision_and_safe(scorer):
    assert IMAGE_TEXT_WEIGHTS.stat().st_size < 10e6
    assert {tensor.dtype for tensor in load_file(IMAGE_TEXT_WEIGHTS).values()} == {torch.float16}


def test_images_and_captions_are_unit_vectors_and_batches_do_not_matter(scorer, generator):
    images = torch.rand(3, 64, 64, 3, generator=generator)
    vectors = scorer.embed_images(images)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(
        scorer.embed_images(images, batch_size=1), vectors, atol=1e-5, rtol=0
    )
    captions = scorer.embed_captions(["a dog", "a red armchair, 3d asset"])
    torch.testing.assert_close(captions.norm(dim=1), torch.ones(2))
    torch.testing.assert_close(scorer.embed_captions(["a dog"])[0], captions[0], atol=1e-5, rtol=0)
    assert scorer.similarity(images, ["a dog"] * 2).shape == (3, 2)
    with pytest.raises(ShapeError, match="images"):
        scorer.similarity(images.movedim(-1, 1), ["a dog"])


def test_it_finds_names_that_it_never_saw_far_above_chance(scorer):
    places = true_ranks(scorer, "held_out", images=1, seed=9)
    assert (places < 5).float().mean() > 3 * 5 / len(places)
    assert (places < 1).float().mean() > 5 / len(places)


def test_files_round_trip_and_belong_to_one_text_encoder(scorer, tmp_path, generator):
    path = tmp_path / "score.safetensors"
    save_image_text(scorer.net, scorer.text, path)
    images = torch.rand(2, 32, 32, 3, generator=generator)
    again = load_image_text(path, text=scorer.text)
    torch.testing.assert_close(again.embed_images(images), scorer.embed_images(images))
    other = TextSide.of_pocket()
    with torch.no_grad():
        next(other.encoder.parameters()).add_(1.0)
    with pytest.raises(WeightsMissing, match="was fitted to the text encoder"):
        load_image_text(path, text=other)


@pytest.mark.parametrize("damage", ["absent", "cut", "other"])
def test_files_that_are_not_the_score_s_are_refused(damage, scorer, tmp_path):
    path = tmp_path / "score.safetensors"
    if damage == "cut":
        path.write_bytes(IMAGE_TEXT_WEIGHTS.read_bytes()[:1000])
    if damage == "other":
        net = ImageTextNet()
        net.to_text = torch.nn.Linear(4, 4)
        save_image_text(net, scorer.text, path)
    with pytest.raises(WeightsMissing, match=rf"cannot be read: .* --out {path}$"):
        load_image_text(path, text=scorer.text)


def test_ranks_count_the_names_that_fit_at_least_as_well():
    similarity = torch.tensor([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.2, 0.2, 0.2]])
    assert ranks(similarity, torch.tensor([0, 1, 2])).tolist() == [0, 2, 2]


def test_sets_of_names_are_as_large_and_held_out_ones_are_trained_nowhere():
    pack = default_pack()
    sets = {split: names_of(split, pack) for split in SETS.values()}
    assert len(sets["held_out"]) == len(sets["train"]) == 49
    trained = {pack.info(name).noun for name in pack.names("train")}
    assert not trained & set(sets["held_out"])
    assert set(sets["train"]) <= trained


def test_true_images_show_the_noun_s_objects_from_the_sides_of_the_prompts():
    images = true_images(["bed", "desk"], "held_out", 2, seed=0)
    assert images.shape == (4, 64, 64, 3)
    assert not torch.equal(images[0], images[1])
    again = true_images(["bed", "desk"], "held_out", 2, seed=0)
    assert torch.equal(images, again)


def test_prompts_name_noun_and_side_and_true_renders_of_them_score_as_true(scorer):
    asked: list[str] = []

    def draw(prompts: list[str]) -> torch.Tensor:
        asked.extend(prompts)
        return true_images(names_of("held_out", default_pack()), "held_out", 2, seed=5)

    drawn = drawn_ranks(draw, scorer, "held_out", images=2)
    assert torch.equal(drawn, true_ranks(scorer, "held_out", images=2, seed=5))
    assert len(asked) == 98
    assert asked[:2] == [f"a bar of soap, {side}" for side in SIDES]


def test_two_images_of_a_noun_are_one_observation(monkeypatch):
    """Where both are found or both are missed, 98 images tell no more than 49 nouns."""
    places = torch.tensor([0] * 24 + [7] * 25).repeat_interleave(2)
    for name in ("drawn_ranks", "true_ranks"):
        monkeypatch.setattr(name_retrieval, name, lambda *_, **__: places)
    figures = name_figures(lambda prompts: torch.zeros(0), None, images=2, seed=5)
    assert figures["held_name_top1"] == wilson(24, 49)
    mixed = torch.tensor([0, 7]).repeat(49)
    monkeypatch.setattr(name_retrieval, "drawn_ranks", lambda *_, **__: mixed)
    figures = name_figures(lambda prompts: torch.zeros(0), None, images=2, seed=5)
    assert (figures["held_name_top1"].value, figures["held_name_top1"].n) == (0.5, 49)


def test_noise_is_found_by_chance_and_figures_say_what_chance_is(scorer):
    def draw(prompts: list[str]) -> torch.Tensor:
        return torch.rand(len(prompts), 64, 64, 3, generator=torch.Generator().manual_seed(0))

    figures = name_figures(draw, scorer, images=1, seed=5)
    assert figures["name_chance_top1"].value == pytest.approx(1 / 49)
    for label in SETS:
        assert figures[f"{label}_name_top5"].value < figures[f"{label}_true_top5"].value
        assert figures[f"{label}_name_top1"].n == 49
    assert figures["held_name_top5"].low < figures["name_chance_top5"].value
    assert set(figures) == {
        *(f"{s}_{k}_top{t}" for s in SETS for k in ("name", "true") for t in (1, 5)),
        *(f"name_chance_top{t}" for t in (1, 5)),
    }
