"""Configuration of region planners: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from image_tools.configs import PriorMemoryConfig

__all__ = [
    "EndpointPlannerConfig",
    "FilePlannerConfig",
    "LocalPlannerConfig",
    "PlannerConfig",
    "RulePlannerConfig",
]


@dataclass(frozen=True)
class RulePlannerConfig:
    """Reads relations from the prompt: left of, right of, above, below, on top of, and. A comma or
    "and" begins a thing only before a, an, the, another or a number."""

    kind: Literal["rule"] = "rule"
    base_ratio: float = 0.5
    """Share of the whole prompt in every region."""


@dataclass(frozen=True)
class FilePlannerConfig:
    """A plan written by hand, in YAML or JSON: the keys of a regional prompt."""

    path: str
    """The file."""
    kind: Literal["file"] = "file"


@dataclass(frozen=True)
class EndpointPlannerConfig:
    """A language model behind an OpenAI-compatible endpoint, of any vendor or a local server."""

    url: str
    """Base address, up to and with its version, such as http://localhost:8000/v1."""
    model: str
    """Name of the model at the endpoint."""
    kind: Literal["endpoint"] = "endpoint"
    api_key_variable: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; none is sent where it is not set."""
    base_ratio: float = 0.5
    """Share of the whole prompt in every region."""
    temperature: float = 0.0
    """0 for the likeliest plan, more for variety."""
    attempts: int = 3
    """How often it is asked until its answer can be read."""
    timeout_s: float = 60.0
    """Seconds to wait for each answer."""


@dataclass(frozen=True)
class LocalPlannerConfig:
    """A language model in a folder of this machine, run here. Nothing is downloaded."""

    path: str
    """Folder of a causal language model and its tokenizer in stock transformers layout, weights as
    .safetensors. One that follows instructions and has a chat template plans best."""
    kind: Literal["local"] = "local"
    base_ratio: float = 0.5
    """Share of the whole prompt in every region."""
    max_new_tokens: int = 1024
    """Longest answer, with what the model thinks aloud."""
    device: str = "cpu"
    """Where it runs while it plans: cpu, cuda, cuda:1, mps."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format; auto is that of the files."""

    def __post_init__(self) -> None:
        """Refuse an answer of nothing, and a device that no machine has."""
        PriorMemoryConfig(device=self.device)
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens} - expected 1 or more.")


PlannerConfig = RulePlannerConfig | FilePlannerConfig | EndpointPlannerConfig | LocalPlannerConfig
