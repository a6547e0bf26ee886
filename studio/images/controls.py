"""Pictures along conditions: for each seed the conditions, and the picture without and with them.

    draw = make_controlled(prior, config)

Conditions and weights are read when it is made, before anything is drawn.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from image_tools.control.control_weights import read_controlnet
from image_tools.control.controlnet import Control, ControlledPrior
from image_tools.control.uni_controlnet import UniControlledPrior
from image_tools.control.uni_weights import read_wanted
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import ddim_steps
from image_tools.pocket.paths import adapter_files, adapter_path
from studio.images.configs import ControlImageConfig
from studio.images.looks import look_embedding
from studio.images.method_configs import (
    CannyConditionConfig,
    ConditionConfig,
    ControlNetMethodConfig,
    PoseConditionConfig,
    PoseFileConditionConfig,
    SoftEdgeConditionConfig,
    UniControlNetMethodConfig,
)
from studio.images.picture import Draw, Picture, draw_plainly
from studio.images.reading import conditions_of, read_condition, read_picture

__all__ = ["make_controlled"]


def make_controlled(prior: DiffusionPrior, config: ControlImageConfig) -> Draw:
    """What draws along the scene's conditions.

    Raises:
        ConfigError: a condition cannot be read, or has another size.
        WeightsMissing: a control's weights are not there.
        UnsupportedModel: a control belongs to another prior.
    """
    conditions = {
        key: read_condition(one, key, size=prior.image_size).to(prior.device)
        for key, one in conditions_of(config)
    }
    shown = _shown(config, conditions, prior.image_size)
    if isinstance(config.method, ControlNetMethodConfig):
        tool = _with_nets(prior, config, list(conditions.values()))
        steps = [step.t for step in ddim_steps(prior, config.sampler.steps)]
    else:
        tool, steps = _with_adapter(prior, config, list(conditions.values())), None

    def draw(seed: int) -> list[Picture]:
        plain = draw_plainly(prior, config, seed)
        with nullcontext() if steps is None else tool.sampling(steps):
            controlled = draw_plainly(tool, config, seed)
        return [
            Picture("plain", "without control", plain, config.prompt),
            *shown,
            Picture("controlled", "with control", controlled, config.prompt),
        ]

    return draw


def _with_nets(
    prior: DiffusionPrior, config: ControlImageConfig, images: list[Float[Tensor, "1 h w 3"]]
) -> ControlledPrior:
    controls = []
    for k, (net, image) in enumerate(zip(config.method.nets, images, strict=True)):
        path = adapter_path(net.weights, role=f"method.nets.{k}.weights")
        model = read_controlnet(replace(net, weights=str(path)), prior.dtype).to(prior.device)
        name = Path(net.weights).name
        controls.append(Control(model, image, net.strength, net.window, net.mode, name))
    return ControlledPrior(prior, controls)


def _with_adapter(
    prior: DiffusionPrior, config: ControlImageConfig, images: list[Float[Tensor, "1 h w 3"]]
) -> UniControlledPrior:
    method = config.method
    file = adapter_files(method.model, role="method.model")[0]
    local, content = read_wanted(
        file,
        prior,
        key="method",
        maps=bool(method.maps),
        content=method.content is not None,
    )
    maps = {one.name: image for one, image in zip(method.maps, images, strict=True)}
    embedding, strength = None, 1.0
    if method.content is not None:
        width, strength = content.settings.width, method.content.strength
        embedding = look_embedding(method.content, "method.content", width=width)
    return UniControlledPrior(
        prior,
        local,
        content,
        maps=maps,
        embedding=embedding,
        strength=method.strength,
        content_strength=strength,
    )


def _shown(
    config: ControlImageConfig, conditions: dict[str, Float[Tensor, "1 h w 3"]], size: int
) -> list[Picture]:
    """The conditions, and the picture whose look is copied."""
    shown = [
        Picture(f"condition{k}", _caption(one), conditions[key][0], is_compared=False)
        for k, (key, one) in enumerate(conditions_of(config), start=1)
    ]
    method = config.method
    if isinstance(method, UniControlNetMethodConfig) and method.content is not None:
        look = read_picture(method.content.path, "method.content.path", size=size)[0]
        name = Path(method.content.path).name
        shown.append(Picture("content", f"look of {name}", look, is_compared=False))
    return shown


def _caption(condition: ConditionConfig) -> str:
    name = Path(condition.path).name
    if isinstance(condition, CannyConditionConfig | SoftEdgeConditionConfig):
        return f"edges of {name}"
    is_pose = isinstance(condition, PoseConditionConfig | PoseFileConditionConfig)
    return f"pose of {name}" if is_pose else name
