"""Configuration of score distillation under conditions rendered from the scene, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guidance.configs import SDSConfig
from guidance.critic_configs import VSDConfig
from image_tools.control.control_configs import ControlConfig, StepWindow

__all__ = ["ConditionView", "ControlSDSConfig", "SceneControlConfig"]

ConditionView = Literal["depth", "normals", "edges", "regions"]

SDS = SDSConfig()


@dataclass(frozen=True)
class SceneControlConfig:
    """One ControlNet, and the picture of the scene that it sees from each camera."""

    net: ControlConfig
    """The ControlNet and how it acts. weights is a folder, a .safetensors file, or the name of an
    adapter that ships with the package, such as pocket-control-depth."""
    sees: ConditionView = "depth"
    """What the ControlNet was trained on: inverse depth (near is bright), normals of the camera,
    Canny edges of the shape (not of its colours), or one colour for each part of a mesh."""

    def __post_init__(self) -> None:
        """Refuse a window that only a sampler can have."""
        window = self.net.window
        if isinstance(window, StepWindow) and not window.is_always_on:
            raise ValueError(
                f"net.window: from {window.start} to {window.end} of a sampler's steps, and "
                "distillation has none - expected net.window.kind=noise with low and high."
            )


@dataclass(frozen=True)
class ControlSDSConfig:
    """Score distillation with ControlNets (arXiv 2302.05543) that see the scene's own geometry."""

    kind: Literal["control_sds"] = "control_sds"
    """Tag of this choice."""
    controls: tuple[SceneControlConfig, ...] = ()
    """ControlNets, whose residuals add up; without any, or with strengths of 0, the plain rule."""
    rule: SDSConfig | VSDConfig = SDS
    """The rule that the controlled prior guides. The critic of vsd sees no condition."""
