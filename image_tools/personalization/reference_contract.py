"""What the config of every tool that looks at reference images can be asked; free of torch.

A config derives from ``ReferenceToolSettings`` and answers what applies to it. Pictures and models
are looked for before a run begins, and problems are told with the scene's other ones.

    @dataclass(frozen=True)
    class MineConfig(ReferenceToolSettings):
        weights: str
        images: tuple[str, ...]
        kind: Literal["mine"] = "mine"

        def pictures(self):
            return [(f"images.{k}", path) for k, path in enumerate(self.images)]

        def models(self):
            return [("weights", self.weights)]
"""

from __future__ import annotations

__all__ = ["ReferenceToolSettings"]


class ReferenceToolSettings:
    """Answers of a tool that needs nothing."""

    def pictures(self) -> list[tuple[str, str]]:
        """Every picture that the tool reads, as (key below the tool, path)."""
        return []

    def models(self) -> list[tuple[str, str]]:
        """Every file or folder of weights, as (key below the tool, path or shipped name)."""
        return []

    def problems(self, prompt: str) -> list[str]:
        """What does not fit the scene's prompt, each beginning with its key below the tool."""
        return []

    def plain_prompt(self, prompt: str) -> str:
        """The scene's prompt as a prior without the tool reads it."""
        return prompt

    def scene_problems(self) -> list[str]:
        """What does not fit a 3D scene, in the same form."""
        return []
