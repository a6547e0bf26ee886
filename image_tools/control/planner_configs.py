"""Configuration of region planners: frozen dataclasses, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["EndpointPlannerConfig", "FilePlannerConfig", "PlannerConfig", "RulePlannerConfig"]


@dataclass(frozen=True)
class RulePlannerConfig:
    """Reads relations from the prompt: left of, right of, above, below, on top of, and."""

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


PlannerConfig = RulePlannerConfig | FilePlannerConfig | EndpointPlannerConfig
