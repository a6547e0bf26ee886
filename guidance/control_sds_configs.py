"""Configuration of score distillation under conditions rendered from the scene, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from guidance.configs import SDSConfig
from guidance.critic_configs import VSDConfig
from image_tools.control.control_configs import ControlConfig, StepWindow
from image_tools.control.uni_configs import UniContentConfig

__all__ = [
    "MADE_OF_NORMALS",
    "ConditionView",
    "ControlSDSConfig",
    "SceneControlConfig",
    "SceneMapConfig",
    "SceneUniConfig",
]

ConditionView = Literal["depth", "normals", "normals_bae", "edges", "regions"]
MADE_OF_NORMALS: frozenset[ConditionView] = frozenset({"normals", "normals_bae", "edges"})
"""Pictures for which a render must have normals."""

SDS = SDSConfig()


@dataclass(frozen=True)
class SceneControlConfig:
    """One ControlNet, and the picture of the scene that it sees from each camera."""

    net: ControlConfig
    """The ControlNet and how it acts. weights is a folder, a .safetensors file, or the name of an
    adapter that ships with the package, such as pocket-control-depth."""
    sees: ConditionView = "depth"
    """What the ControlNet was trained on: inverse depth (near is bright), normals of the camera
    (red is right; normals_bae: red is left, as of control_v11p_sd15_normalbae), Canny edges of the
    shape (not of its colours), or one colour for each part of a mesh."""

    def __post_init__(self) -> None:
        """Refuse a window that only a sampler can have."""
        window = self.net.window
        if isinstance(window, StepWindow) and not window.is_always_on:
            raise ValueError(
                f"net.window: from {window.start} to {window.end} of a sampler's steps, and "
                "distillation has none - expected net.window.kind=noise with low and high."
            )


@dataclass(frozen=True)
class SceneMapConfig:
    """One of a Uni-ControlNet's conditions, and the picture of the scene that stands for it."""

    name: str
    """Which of the adapter's conditions it is: depth, normal or edge for pocket-uni; midas, canny
    or seg for the authors' own."""
    sees: ConditionView = "depth"
    """What is drawn, as for a ControlNet."""


@dataclass(frozen=True)
class SceneUniConfig:
    """Uni-ControlNet (arXiv 2305.16322) beside the prior: one adapter for all maps of the scene,
    and one for the look of a picture."""

    model: str = "pocket-uni"
    """A .safetensors file with the adapters, or the name of one that ships with the package."""
    maps: tuple[SceneMapConfig, ...] = ()
    """The conditions that are drawn from the scene; the others are absent."""
    content: UniContentConfig | None = None
    """A picture whose look is copied, from every side."""
    strength: float = 1.0
    """Factor of the maps' residuals; 0 switches them off."""

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        names = [one.name for one in self.maps]
        if not names and self.content is None:
            raise ValueError(
                "maps is empty and there is no content - expected at least one, such as: "
                "maps=[{name: depth, sees: depth}]"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"maps are named {', '.join(names)} - expected each name once.")
        if self.strength < 0.0:
            raise ValueError(f"strength is {self.strength} - expected 0 or more.")

    @property
    def is_on(self) -> bool:
        """Whether anything acts."""
        has_look = self.content is not None and self.content.strength != 0.0
        return has_look or (bool(self.maps) and self.strength != 0.0)


@dataclass(frozen=True)
class ControlSDSConfig:
    """Score distillation with ControlNets (arXiv 2302.05543) or a Uni-ControlNet (arXiv 2305.16322)
    that see the scene's own geometry."""

    kind: Literal["control_sds"] = "control_sds"
    """Tag of this choice."""
    controls: tuple[SceneControlConfig, ...] = ()
    """ControlNets, whose residuals add up; without any, or with strengths of 0, the plain rule."""
    uni: SceneUniConfig | None = None
    """One adapter for several conditions and for the look of a picture; adds to the ControlNets."""
    rule: SDSConfig | VSDConfig = SDS
    """The rule that the controlled prior guides. The critic of vsd sees no condition."""
