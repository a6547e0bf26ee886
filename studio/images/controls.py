"""Pictures along conditions: for each seed the conditions, and the picture without and with them.

draw = make_controlled(prior, config)
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
from image_tools.control.uni_weights import read_uni
from image_tools.diffusion.prior import DiffusionPrior
from image_tools.diffusion.sampling import ddim_steps
from studio.errors import WeightsMissing
from studio.images.adapters import adapter_path, find_adapter
from studio.images.configs import ControlImageConfig
from studio.images.method_configs import (
    CannyConditionConfig,
    ConditionConfig,
    ControlNetMethodConfig,
)
from studio.images.picture import Draw, Picture, draw_plainly
from studio.images.reading import conditions_of, read_condition

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
    if isinstance(config.method, ControlNetMethodConfig):
        tool = _with_nets(prior, config, list(conditions.values()))
        steps = [step.t for step in ddim_steps(prior, config.sampler.steps)]
    else:
        tool, steps = _with_adapter(prior, config, list(conditions.values())), None
    shown = [
        Picture(f"condition{k + 1}", _caption(one), conditions[key][0], is_compared=False)
        for k, (key, one) in enumerate(conditions_of(config))
    ]

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
        path = adapter_path(net.weights, f"method.nets.{k}.weights")
        model = read_controlnet(replace(net, weights=str(path)), prior.dtype).to(prior.device)
        name = Path(net.weights).name
        controls.append(Control(model, image, net.strength, net.window, net.mode, name))
    return ControlledPrior(prior, controls)


def _with_adapter(
    prior: DiffusionPrior, config: ControlImageConfig, images: list[Float[Tensor, "1 h w 3"]]
) -> UniControlledPrior:
    key, method = "method.model", config.method
    file = find_adapter(method.model, key)[0]
    local, _ = read_uni(file, prior.unet, prior.dtype)
    if local is None:
        raise WeightsMissing(
            f"{key}: '{file}' holds no local adapter - expected one, which sees the conditions."
        )
    maps = {one.name: image for one, image in zip(method.maps, images, strict=True)}
    return UniControlledPrior(prior, local.to(prior.device), maps=maps, strength=method.strength)


def _caption(condition: ConditionConfig) -> str:
    name = Path(condition.path).name
    return f"edges of {name}" if isinstance(condition, CannyConditionConfig) else name
