"""Personalized results on a prior: they act, switch off and come off exactly; no stale prompts."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from image_tools.configs import PersonalizedPriorConfig, PocketPriorConfig
from image_tools.diffusion.layout import find_prior_files
from image_tools.diffusion.loading import load_prior
from image_tools.diffusion.lora_apply import loras_active, prior_modules
from image_tools.diffusion.lora_files import write_lora
from image_tools.errors import UnsupportedModel, WeightsMissing
from image_tools.personalization.consistency import ConsistencyPrior
from image_tools.personalization.dreambooth import train_dreambooth
from image_tools.personalization.dreambooth_configs import (
    BatchConfig,
    DreamBoothConfig,
    LoraShapeConfig,
)
from image_tools.personalization.embedding_files import write_embedding
from image_tools.personalization.loop import batch_generator
from image_tools.personalization.personalized import attach_subjects, personalized_prior
from image_tools.personalization.personalized_configs import (
    EmbeddingUseConfig,
    LoraUseConfig,
    SubjectConfig,
)
from image_tools.personalization.placeholders import PlaceholderError
from image_tools.personalization.tokens import word_embedding
from image_tools.personalization.trainable_lora import TrainableLora
from renderers.errors import StudioError
from tests.image_tools.personalization.subjects import (
    SHORT,
    load_tiny,
    photos,
    predict,
    train_numbers,
)


@pytest.fixture(scope="module")
def files(tiny_pipelines, tmp_path_factory):
    """A LoRA on denoiser and text encoder, a DoRA, a word, and weights of a DreamBooth."""
    folder = tmp_path_factory.mktemp("personal")
    prior = load_tiny(tiny_pipelines)
    lora = TrainableLora(
        prior, LoraShapeConfig(rank=2, text_rank=2), name="s", generator=batch_generator(0, 0)
    )
    train_numbers(lora.parameters.values())
    write_lora(folder / "lora.safetensors", lora.file(), layout="kohya")
    lora.detach()
    shape = LoraShapeConfig(rank=2, variant="dora")
    dora = TrainableLora(prior, shape, name="d", generator=batch_generator(0, 1))
    train_numbers(dora.parameters.values())
    write_lora(folder / "dora.safetensors", dora.file(), layout="diffusers")
    dora.detach()
    word = word_embedding(prior, "<pet>", "duck")
    word = replace(word, rows=(word.rows[0] + 0.5,))
    write_embedding(folder / "word.safetensors", word, layout="diffusers")
    config = DreamBoothConfig(
        parts="unet_and_text",
        text_learning_rate=1e-2,
        batch=BatchConfig(size=1),
        loop=replace(SHORT, steps=1, checkpoint_steps=(1,)),
    )
    result = train_dreambooth(prior, photos(), None, config, folder / "dreambooth")
    return {
        "lora": folder / "lora.safetensors",
        "dora": folder / "dora.safetensors",
        "word": folder / "word.safetensors",
        "weights": result.files[-1],
        "trained": predict(prior),
    }


def _subject(files, **changes) -> SubjectConfig:
    return SubjectConfig(loras=(LoraUseConfig(str(files["lora"])),), **changes)


def _everything(files) -> SubjectConfig:
    return _subject(
        files,
        embeddings=(EmbeddingUseConfig(str(files["word"])),),
        weights=str(files["weights"]),
    )


def test_all_parts_act_and_off_and_removed_are_the_base_bit_for_bit(tiny_pipelines, files):
    prior = load_tiny(tiny_pipelines)
    before, mark = predict(prior), prior.fingerprint
    attached = attach_subjects(prior, [_everything(files)])
    acting, acting_mark = predict(prior), prior.fingerprint
    assert not torch.equal(acting, before)
    with attached.off():
        assert torch.equal(predict(prior), before)
    assert torch.equal(predict(prior), acting)
    assert prior.fingerprint == acting_mark != mark
    assert not any(p.requires_grad for p in prior.unet.parameters())
    attached.remove()
    attached.remove()
    assert torch.equal(predict(prior), before)
    assert prior.fingerprint == mark


def test_dreambooth_weights_predict_as_the_trained_prior(tiny_pipelines, files):
    prior = load_tiny(tiny_pipelines)
    attach_subjects(prior, [SubjectConfig(weights=str(files["weights"]))])
    assert torch.equal(predict(prior), files["trained"])


def test_weights_that_are_replaced_for_good_are_not_kept(tiny_pipelines, files):
    """A GPU that holds one denoiser need not hold two."""
    prior = load_tiny(tiny_pipelines, "sd1")
    addresses = {parameter.data_ptr() for parameter in prior.unet.parameters()}
    before = weakref.ref(prior.unet.conv_in.weight.untyped_storage())
    subject = SubjectConfig(weights=str(files["weights"]))
    personalized_prior(prior, [subject], guidance="plain")
    gc.collect()
    assert before() is None
    assert not addresses & {parameter.data_ptr() for parameter in prior.unet.parameters()}


def test_what_was_learned_is_added_to_the_weights_of_a_relative(tiny_pipelines, tmp_path):
    """A multi-view model has parts of its own and moved the others; both stay."""
    name = "conv_in.weight"
    relative = load_tiny(tiny_pipelines)
    origin = tiny_pipelines["sd1"]
    own = dict(relative.unet.named_parameters())
    before = {key: parameter.detach().clone() for key, parameter in own.items()}
    learned = torch.randn(before[name].shape, generator=torch.Generator().manual_seed(0))
    trained = {f"unet.{name}": before[name] + learned}
    save_file(trained, tmp_path / "weights.safetensors")
    with torch.no_grad():
        own[name] += 3.0
    subject = SubjectConfig(weights=str(tmp_path / "weights.safetensors"), weights_from=str(origin))
    attached = attach_subjects(relative, [subject])
    torch.testing.assert_close(own[name].data, before[name] + 3.0 + learned)
    assert all(torch.equal(own[key], one) for key, one in before.items() if key != name)
    attached.remove()
    assert torch.equal(own[name].data, before[name] + 3.0)


def test_weights_of_more_than_a_denoiser_are_not_carried_over(tiny_pipelines, files):
    subject = SubjectConfig(weights=str(files["weights"]), weights_from=str(tiny_pipelines["sd1"]))
    with pytest.raises(UnsupportedModel, match="weights of its denoiser alone"):
        attach_subjects(load_tiny(tiny_pipelines), [subject])


def test_cached_prompts_are_never_stale(tiny_pipelines, files, tmp_path):
    """The same cache folder serves base and subject, in any order."""
    config = PocketPriorConfig(path=str(tiny_pipelines["sd1"]), prompt_cache=str(tmp_path))
    prior = load_prior(config, torch.device("cpu"))
    base = prior.encode_prompt(["a duck"]).tokens
    attached = attach_subjects(prior, [_subject(files)])
    personal = prior.encode_prompt(["a duck"]).tokens
    assert not torch.equal(personal, base)
    with attached.off():
        assert torch.equal(prior.encode_prompt(["a duck"]).tokens, base)
    again = load_prior(config, torch.device("cpu"))
    assert torch.equal(again.encode_prompt(["a duck"]).tokens, base)
    assert not again.text.is_loaded, "it came from the cache"
    attach_subjects(again, [_subject(files)])
    assert torch.equal(again.encode_prompt(["a duck"]).tokens, personal)
    weak = replace(_subject(files), loras=(LoraUseConfig(str(files["lora"]), 0.5),))
    third = load_prior(config, torch.device("cpu"))
    attach_subjects(third, [weak])
    weaker = third.encode_prompt(["a duck"]).tokens
    assert not torch.equal(weaker, personal), "the weight is part of the key"


def test_dropped_text_encoders_keep_what_they_were_taught(tiny_pipelines, files):
    config = PocketPriorConfig(path=str(tiny_pipelines["sd1"]))
    config = replace(config, memory=replace(config.memory, text_encoder="drop"))
    dropping, keeping = load_prior(config, torch.device("cpu")), load_tiny(tiny_pipelines)
    for prior in (dropping, keeping):
        attach_subjects(prior, [_subject(files)])
        prior.encode_prompt(["a mushroom"])
    assert torch.equal(predict(dropping), predict(keeping))


def _bundled(files, path, *, part: str = "string_to_param.*", **words) -> LoraUseConfig:
    """The LoRA with words beside it, each as the key says."""
    rows = {f"bundle_emb.{word}.{part}": value for word, value in words.items()}
    save_file({**load_file(files["lora"]), **rows}, path)
    return LoraUseConfig(str(path))


@pytest.mark.parametrize("part", ["string_to_param.*", "emb_params"])
def test_words_that_a_lora_brings_along_act_and_go_with_it(tiny_pipelines, files, tmp_path, part):
    """A1111 puts them into its database of embeddings when the network loads."""
    plain, prior = load_tiny(tiny_pipelines), load_tiny(tiny_pipelines)
    before, mark = predict(prior, "a mypet"), prior.fingerprint
    (rows,) = word_embedding(prior, "<pet>", "duck").rows
    use = _bundled(files, tmp_path / "style.safetensors", part=part, mypet=rows + 0.5)
    attached = attach_subjects(prior, [SubjectConfig(loras=(use,))])
    apart = (EmbeddingUseConfig(str(files["word"]), "mypet"),)
    attach_subjects(plain, [_subject(files, embeddings=apart)])
    assert torch.equal(predict(prior, "a mypet"), predict(plain, "a mypet"))
    attached.remove()
    assert torch.equal(predict(prior, "a mypet"), before)
    assert prior.fingerprint == mark


def test_a_file_under_embeddings_comes_before_a_bundled_word(tiny_pipelines, files, tmp_path):
    prior, plain = load_tiny(tiny_pipelines), load_tiny(tiny_pipelines)
    (rows,) = word_embedding(prior, "<pet>", "duck").rows
    use = _bundled(files, tmp_path / "style.safetensors", MyPet=rows - 5.0)
    apart = (EmbeddingUseConfig(str(files["word"]), "mypet"),)
    attach_subjects(prior, [SubjectConfig(loras=(use,), embeddings=apart)])
    attach_subjects(plain, [_subject(files, embeddings=apart)])
    assert torch.equal(predict(prior, "a mypet"), predict(plain, "a mypet"))


def test_a_bundled_word_that_cannot_be_used_can_be_renamed(tiny_pipelines, files, tmp_path):
    prior = load_tiny(tiny_pipelines)
    before, mark = predict(prior), prior.fingerprint
    (rows,) = word_embedding(prior, "<pet>", "duck").rows
    use = _bundled(files, tmp_path / "style.safetensors", **{"my pet": rows - 5.0})
    with pytest.raises(PlaceholderError, match=r"style.safetensors' brings words .*'my pet' - exp"):
        attach_subjects(prior, [SubjectConfig(loras=(use,))])
    assert torch.equal(predict(prior), before)
    assert prior.fingerprint == mark
    renamed = (EmbeddingUseConfig(use.path, "<bird>"),)
    attach_subjects(prior, [SubjectConfig(loras=(use,), embeddings=renamed)])
    twice = replace(_subject(files), loras=(_bundled(files, tmp_path / "b.safetensors", a1=rows),))
    with pytest.raises(PlaceholderError, match=r"'a1' is in use already"):
        attach_subjects(load_tiny(tiny_pipelines), [twice, twice])


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_weight_zero_predicts_bit_for_bit_as_the_base(tiny_pipelines, files, name):
    prior = load_tiny(tiny_pipelines)
    before, mark = predict(prior), prior.fingerprint
    attach_subjects(prior, [SubjectConfig(loras=(LoraUseConfig(str(files[name]), 0.0),))])
    assert torch.equal(predict(prior), before)
    assert prior.fingerprint == mark
    with loras_active(prior_modules(prior), {"subject0_0": 1.0}):
        assert not torch.equal(predict(prior), before)


def test_consistency_makes_a_student_of_each_subject(tiny_pipelines, files):
    subjects = [
        _subject(files, token="<pet>", word="duck", consistency_scale=4.0),
        _subject(files, token="<ink>", word="ink"),
    ]
    prior = personalized_prior(
        load_tiny(tiny_pipelines), subjects, guidance="consistency", parallel=0.5
    )
    assert isinstance(prior, ConsistencyPrior)
    assert [dict(s.loras) for s in prior.students] == [{"subject0_0": 1.0}, {"subject1_0": 1.0}]
    assert [s.scale for s in prior.students] == [4.0, 3.0]
    assert prior.parallel == 0.5
    plain = personalized_prior(load_tiny(tiny_pipelines), subjects[:1], guidance="plain")
    assert not torch.equal(predict(plain), predict(load_tiny(tiny_pipelines)))


def test_what_cannot_be_attached_leaves_the_prior_unchanged(tiny_pipelines, files, tmp_path):
    prior = load_tiny(tiny_pipelines)
    before, mark = predict(prior), prior.fingerprint
    lost = replace(_subject(files), loras=(LoraUseConfig(str(tmp_path / "lost.safetensors")),))
    with pytest.raises(WeightsMissing, match=r"lost\.safetensors"):
        attach_subjects(prior, [_everything(files), lost])
    assert torch.equal(predict(prior), before)
    assert prior.fingerprint == mark
    with pytest.raises(StudioError, match="Two subjects have DreamBooth weights"):
        attach_subjects(prior, [_everything(files), _everything(files)])
    with pytest.raises(StudioError, match="with consistency guidance - expected LoRAs"):
        personalized_prior(prior, [_everything(files)], guidance="consistency")
    with pytest.raises(UnsupportedModel, match=r"has weights 'unet\..*' of shape"):
        attach_subjects(
            load_tiny(tiny_pipelines, "sdxl"), [SubjectConfig(weights=str(files["weights"]))]
        )
    assert torch.equal(predict(prior), before)


def test_a_prior_s_settings_load_it_personalized(tiny_pipelines, files, tmp_path):
    base = PocketPriorConfig(path=str(tiny_pipelines["sd1"]))
    config = PersonalizedPriorConfig(base=base, subjects=(_everything(files),))
    by_hand = load_tiny(tiny_pipelines)
    attach_subjects(by_hand, [_everything(files)])
    assert torch.equal(predict(load_prior(config, torch.device("cpu"))), predict(by_hand))
    listed = find_prior_files(config)
    assert {files["lora"], files["word"], files["weights"]} <= set(listed)
    subject = _subject(files, token="<pet>", word="duck")
    dco = replace(config, subjects=(subject,), guidance="consistency")
    assert isinstance(load_prior(dco, torch.device("cpu")), ConsistencyPrior)
    lost = SubjectConfig(loras=(LoraUseConfig(str(tmp_path / "lost.safetensors")),))
    with pytest.raises(
        WeightsMissing, match=r"The LoRA of a personalized prior is missing: .*lost"
    ):
        find_prior_files(replace(config, subjects=(lost,)))
    with pytest.raises(ValueError, match="'consistency' without subjects"):
        PersonalizedPriorConfig(guidance="consistency")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "neither loras nor embeddings nor weights"),
        ({"loras": (LoraUseConfig("l"),), "weights_from": "m"}, "without weights - expected both"),
        ({"weights": "w", "token": "<pet>"}, "token is '<pet>' and word None - expected both"),
    ],
)
def test_subjects_without_content_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        SubjectConfig(**settings)
