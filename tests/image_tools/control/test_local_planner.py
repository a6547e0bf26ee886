"""A planner that is a language model in a folder: tiny real ones that have learned a plan."""

from __future__ import annotations

import pytest
import torch

from image_tools.control.planner_configs import LocalPlannerConfig
from image_tools.control.planners import INSTRUCTIONS, PlanError, build_planner
from image_tools.errors import UnsafeWeights, UnsupportedModel, WeightsMissing
from renderers.errors import BackendMissing

PROMPT = "a red ball left of a blue cube"
PLAN = (
    "Two things side by side.\nFinal split ratio: 1,2\n"
    "Regional Prompt: a red ball BREAK a blue cube"
)
CHAT = (
    "{% for message in messages %}{{ message.role }} says: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant says: {% endif %}"
)
BOTH = [None, CHAT]
END = "<end>"


def question(template: str | None) -> str:
    """What a model is to be asked, by the template or as a text to continue."""
    asked = f"{INSTRUCTIONS}\n\nPicture: {PROMPT}"
    if template is None:
        return f"{asked}\n\nPlan:\n"
    return f"user says: {asked}\nassistant says: "


def tiny_tokenizer(template: str | None):
    """Byte pairs of the very texts, so that these are short."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([question(template), PLAN], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)
    fast.chat_template = template
    return fast


def tiny_model(tokenizer, **settings):
    """A language model with random weights, the same ones every time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings = {"max_position_embeddings": 1024, **settings}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=None,
                pad_token_id=None,
                **settings,
            )
        )


def learn_plan(model, tokenizer, template: str | None) -> None:
    """Train until the likeliest answer to the question is the plan."""
    asked = tokenizer(question(template)).input_ids
    answer = [*tokenizer(PLAN).input_ids, tokenizer.eos_token_id]
    ids = torch.tensor([asked + answer])
    labels = ids.clone()
    labels[:, : len(asked)] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(200):
        result = model(ids, labels=labels)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        if result.loss < 0.01:
            break


def written(folder, model, tokenizer):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def planner(folder, **settings):
    return build_planner(LocalPlannerConfig(str(folder), **settings))


@pytest.mark.parametrize("template", BOTH, ids=["text", "chat"])
def test_a_model_that_has_learned_a_plan_plans(tmp_path, template):
    tokenizer = tiny_tokenizer(template)
    model = tiny_model(tokenizer)
    learn_plan(model, tokenizer, template)
    # Settings of the folder that would sample are not followed.
    model.generation_config.update(do_sample=True, temperature=5.0)
    folder = written(tmp_path, model, tokenizer)
    plan = planner(folder, base_ratio=0.3).plan(PROMPT)
    assert (plan.ratio, plan.base_ratio) == ("1,2", 0.3)
    assert [region.prompt for region in plan.regions] == ["a red ball", "a blue cube"]
    assert planner(folder, base_ratio=0.3).plan(PROMPT) == plan


def test_an_answer_that_ends_too_early_is_no_plan(tmp_path):
    tokenizer = tiny_tokenizer(None)
    model = tiny_model(tokenizer)
    learn_plan(model, tokenizer, None)
    folder = written(tmp_path, model, tokenizer)
    with pytest.raises(PlanError, match=r"The answer 'Two things.* has no 'Final split ratio:'"):
        planner(folder, max_new_tokens=3).plan(PROMPT)


@pytest.mark.parametrize("template", BOTH, ids=["text", "chat"])
def test_nonsense_is_refused_as_an_endpoint_s_is(tmp_path, template):
    tokenizer = tiny_tokenizer(template)
    folder = written(tmp_path, tiny_model(tokenizer), tokenizer)
    with pytest.raises(PlanError, match=r"gave no plan in 1 answer\. .*write the plan into a file"):
        planner(folder, max_new_tokens=12).plan(PROMPT)


def test_a_question_that_is_too_long_for_a_model_is_told(tmp_path):
    tokenizer = tiny_tokenizer(None)
    folder = written(tmp_path, tiny_model(tokenizer, max_position_embeddings=16), tokenizer)
    with pytest.raises(UnsupportedModel, match=r"reads 16 tokens and the question has \d+"):
        planner(folder).plan(PROMPT)


def test_only_local_folders_of_safetensors_are_read(tmp_path):
    with pytest.raises(WeightsMissing, match="planner's language model is missing: no config"):
        planner("some-owner/some-model").plan(PROMPT)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(UnsafeWeights, match="pickled"):
        planner(tmp_path).plan(PROMPT)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(WeightsMissing, match="planner's language model cannot be read"):
        planner(tmp_path).plan(PROMPT)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        LocalPlannerConfig("folder", max_new_tokens=0)
    with pytest.raises(ValueError, match="device is 'gpu'"):
        LocalPlannerConfig("folder", device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_told(tmp_path):
    tokenizer = tiny_tokenizer(None)
    folder = written(tmp_path, tiny_model(tokenizer), tokenizer)
    with pytest.raises(BackendMissing, match="device of the planner is 'cuda'"):
        planner(folder, device="cuda").plan(PROMPT)
