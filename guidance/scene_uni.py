"""Uni-ControlNet (arXiv 2305.16322) beside a prior that guides 3D: maps are drawn from the scene.

The local adapter sees those of its conditions that the scene can draw, the rest as zeros; the
global one appends the look of a picture to every view's text, the same for all of them.

    prior = SceneUniPrior(config, prior)
    prior.show_scene({"depth": depth})                    # [b, size, size, 3] in 0..1
"""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from guidance.control_sds_configs import ConditionView, SceneUniConfig
from image_tools.control.uni_content import CONTENT_SIZE, content_embedding
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.control.uni_weights import read_wanted
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from image_tools.personalization.photos import load_photo
from image_tools.personalization.photos_configs import PhotosConfig
from image_tools.pocket.paths import adapter_files

__all__ = ["SceneUniPrior"]

KEY = "uni"


class SceneUniPrior(UniControlledPrior):
    """A prior with Uni-ControlNet's adapters, which is shown a scene from each camera."""

    def __init__(self, config: SceneUniConfig, plain: NoisePrior) -> None:
        """Read the adapters, and the picture whose look is copied.

        Raises:
            WeightsMissing: the adapters, or the content's encoder, are not there.
            UnsupportedModel: they belong to another prior, or know no such condition.
            PhotosError: the picture cannot be read.
        """
        content = config.content
        file = adapter_files(config.model, role=f"{KEY}.model")[0]
        local, adapter = read_wanted(
            file, plain, key=KEY, maps=bool(config.maps), content=content is not None
        )
        known = () if local is None else local.settings.conditions
        unknown = [one.name for one in config.maps if one.name not in known]
        if unknown:
            raise UnsupportedModel(
                f"{KEY}.maps: '{file}' knows no condition named {', '.join(unknown)} - expected "
                f"some of {', '.join(known)}."
            )
        embedding = None
        if content is not None:
            picture = load_photo(content.path, size=CONTENT_SIZE, config=PhotosConfig())[None]
            width, key = adapter.settings.width, f"{KEY}.content"
            embedding = content_embedding(picture, content.encoder, width=width, key=key)
        super().__init__(
            plain,
            local,
            adapter,
            embedding=embedding,
            strength=config.strength,
            content_strength=1.0 if content is None else content.strength,
        )
        self.config = config

    def show_scene(self, drawn: Mapping[ConditionView, Float[Tensor, "b s s 3"]]) -> None:
        """Use other pictures of the scene, such as those of a step's cameras."""
        self.show({one.name: drawn[one.sees] for one in self.config.maps}, self.embedding)
