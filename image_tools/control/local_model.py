"""Answers of a causal language model in a local folder, for the planner of regions.

The folder is in stock transformers layout with weights as .safetensors; nothing is downloaded and
no code of the folder runs. The likeliest answer is given, whatever the folder's own settings say of
sampling, so the same question has the same answer. The model is read for each question and
forgotten again: planning comes before the prior needs the memory.

    answer = answer_of(LocalPlannerConfig("~/models/instruct"), INSTRUCTIONS, "a kite over a cow")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from image_tools.control.planner_configs import LocalPlannerConfig
from image_tools.errors import UnsupportedModel
from renderers.errors import BackendMissing

__all__ = ["answer_of"]

ROLE = "planner's language model"


def answer_of(config: LocalPlannerConfig, instructions: str, prompt: str) -> str:
    """What the model says.

    Args:
        config: the model.
        instructions: what is asked.
        prompt: of which picture.

    Raises:
        WeightsMissing: there is no model in the folder; UnsafeWeights if it is pickled.
        UnsupportedModel: the question is too long for it.
        BackendMissing: its device is not there.
    """
    import torch
    from transformers import GenerationConfig

    tokenizer, model = _read(config)
    told = _told(tokenizer, instructions, prompt).to(model.device)
    asked = told["input_ids"].shape[1]
    # Recurrent models read texts of any length.
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = config.max_new_tokens if limit is None else min(config.max_new_tokens, limit - asked)
    if room < 1:
        raise UnsupportedModel(
            f"The {ROLE} '{config.path}' reads {limit} tokens and the question has {asked} - "
            "expected room for the answer. Name a model that reads more."
        )
    end = model.generation_config.eos_token_id
    end = tokenizer.eos_token_id if end is None else end
    likeliest = GenerationConfig(
        max_new_tokens=room,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end[0] if isinstance(end, list) else end,
    )
    with torch.inference_mode():
        tokens = model.generate(**told, generation_config=likeliest)
    return tokenizer.decode(tokens[0, asked:], skip_special_tokens=True)


def _read(config: LocalPlannerConfig) -> tuple[Any, Any]:
    """Tokenizer and model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from image_tools.diffusion.loading import quiet_libraries, readable_weights
    from image_tools.diffusion.weights import find_weights, read_json

    folder = Path(config.path).expanduser()
    read_json(folder / "config.json", role=ROLE)
    find_weights(folder, "model", role=ROLE)
    with readable_weights(folder, ROLE), quiet_libraries():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=config.dtype
        )
    try:
        return tokenizer, model.to(config.device).eval()
    except (AssertionError, RuntimeError) as error:
        raise BackendMissing(
            f"device of the planner is '{config.device}', and PyTorch cannot use it here "
            f"({str(error).splitlines()[0]}). Give another one, such as cpu."
        ) from error


def _told(tokenizer: Any, instructions: str, prompt: str) -> Any:
    """What the model reads: a chat where it knows chats, and otherwise a text to continue.

    One message of the user, since not every template knows another one of the system.
    """
    question = f"{instructions}\n\nPicture: {prompt}"
    if tokenizer.chat_template is None:
        return tokenizer(f"{question}\n\nPlan:\n", return_tensors="pt")
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
