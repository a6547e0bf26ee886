"""ControlNet (arXiv 2302.05543): images of depth, edges and the like as conditions of a prior.

A copy of the denoiser's encoder sees the noisy latents, the text and an image, and adds residuals
to the encoder's outputs and the middle block (Eq. 2). Several controls add up. In the modes
``control`` (guess mode) and ``prompt`` layer i of n + 1 counts 10^(i/n - 1), as in diffusers; the
authors' 0.825^(n - i) differs from it by less than 0.6 %. With strength 0, outside of its window
and without controls, the prediction is the inner prior's bit for bit, and nothing is computed.

Gradients flow to latents and images; ControlNets themselves stay frozen. For 3D guidance images
follow the cameras; detach them unless the geometry shall be moved by them.

    prior = ControlledPrior(prior, [Control(controlnet, depth_image(depth, mask))])
    images = sample_images(prior, ["a red mushroom"], generators=[generator])
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from image_tools.control.control_configs import (
    ControlMode,
    ControlWindow,
    NoiseWindow,
    StepWindow,
)
from image_tools.diffusion.additions import DenoiserCall, scatter_rows
from image_tools.diffusion.conditions import Condition
from image_tools.diffusion.modified import ModifiedPrior, conditional_rows, rows_of
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError, check_shape

__all__ = [
    "Control",
    "ControlledPrior",
    "ResidualAddition",
    "check_condition_image",
    "condition_stride",
    "image_with_holes",
    "layer_weights",
    "window_gate",
]

# Condition images come out of renderers and resizing, which round.
RANGE_TOLERANCE = 1e-3
HOLE = -1.0
ALWAYS = StepWindow()


@dataclass(frozen=True)
class Control:
    """A ControlNet, the images it sees, and how it acts."""

    model: nn.Module
    """A diffusers ControlNetModel."""
    images: Float[Tensor, "b h w k"]
    """Condition images in 0..1 (but for holes), at the size of the prior's images; one, or one for
    each latent."""
    strength: float = 1.0
    """Factor of the residuals."""
    window: ControlWindow = ALWAYS
    """When it acts."""
    mode: ControlMode = "balanced"
    """How it shares the work with the prompt; see ``ControlConfig``."""
    name: str = "control"
    """What errors call it."""
    context: tuple[Float[Tensor, "b n width"], Float[Tensor, "b n width"]] | None = None
    """What its attention sees in the place of the text, in the conditional and in the unconditional
    half of guidance (rows with a role that begins with "uncond"); one row each, or one for each
    latent. None for the text."""
    mask: Float[Tensor, "h w"] | None = None
    """Where it acts, 0 to 1, at any size; None for everywhere."""
    shares: Float[Tensor, " b"] | None = None
    """Factor for each image on top of ``strength``, such as what a view shows; None for 1."""
    has_holes: bool = False
    """Whether pixels that are -1 in all channels are holes to be filled, as the public inpainting
    ControlNet (control_v11p_sd15_inpaint) knows them; see :func:`image_with_holes`. Scene files
    have no such condition."""


class ControlledPrior(ModifiedPrior):
    """A prior with ControlNets beside its denoiser."""

    def __init__(self, plain: NoisePrior, controls: Sequence[Control]) -> None:
        """Wrap a prior.

        Raises:
            UnsupportedModel: a ControlNet belongs to another base model.
            ShapeError: images are no images; StudioError if they are not in 0..1.
        """
        super().__init__(plain)
        self._timesteps: tuple[int, ...] | None = None
        for control in controls:
            _check_fits(control, plain)
            _check_images(control, control.images)
            control.model.eval().requires_grad_(False)
        self.controls = tuple(controls)

    def show(self, images: Sequence[Float[Tensor, "b h w k"]]) -> None:
        """Give each control other images, such as those of a step's cameras.

        Raises:
            ShapeError: another number of them than of controls, or no images.
        """
        if len(images) != len(self.controls):
            raise ShapeError(
                f"{len(images)} condition images came for {len(self.controls)} controls. Give each "
                "control its own."
            )
        for control, own in zip(self.controls, images, strict=True):
            _check_images(control, own)
        pairs = zip(self.controls, images, strict=True)
        self.controls = tuple(replace(control, images=own) for control, own in pairs)

    @contextmanager
    def sampling(self, timesteps: Sequence[int]) -> Iterator[None]:
        """Inside, the sampler's steps are at these timesteps, which windows by steps refer to."""
        before, self._timesteps = self._timesteps, tuple(int(t) for t in timesteps)
        try:
            yield
        finally:
            self._timesteps = before

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition and the residuals of all controls that are not off."""
        controls = [control for control in self.controls if control.strength != 0.0]
        if not controls:
            return condition
        condition = condition.expand(rows)
        total = self.alphas_cumprod.shape[0]
        additions = []
        for control in controls:
            acts = is_cond or not _is_cond_only(control)
            images = rows_of(control.images, rows, f"control '{control.name}'")
            strength = images.new_full((rows,), control.strength if acts else 0.0)
            if control.shares is not None:
                shares = rows_of(control.shares, rows, f"shares of control '{control.name}'")
                strength = strength * shares.to(strength)
            schedule = _Schedule(control.window, total, self._timesteps)
            context = _context_rows(control, condition, rows, is_cond=is_cond)
            additions.append(ResidualAddition(control, images, strength, schedule, context))
        return replace(condition, additions=(*condition.additions, *additions))


@dataclass(frozen=True)
class _Schedule:
    """A window and what it refers to."""

    window: ControlWindow
    total: int
    timesteps: tuple[int, ...] | None


@dataclass(frozen=True)
class ResidualAddition:
    """The residuals of one control for the rows of a denoiser call."""

    control: Control
    images: Float[Tensor, "rows h w k"]
    strength: Float[Tensor, " rows"]
    schedule: _Schedule
    context: Float[Tensor, "rows n width"] | None = None
    """What its attention sees in the place of the text."""

    def __len__(self) -> int:
        return len(self.images)

    def expand(self, rows: int) -> ResidualAddition:
        """Itself, which has all rows already.

        Raises:
            ValueError: if it has another number of rows.
        """
        if len(self) != rows:
            raise ValueError(f"a control has {len(self)} rows for {rows} latents. Give {rows}.")
        return self

    def stack(self, others: Sequence[ResidualAddition]) -> ResidualAddition:
        """More rows of the same control."""
        all_rows = (self, *others)
        context = None if self.context is None else torch.cat([one.context for one in all_rows])
        return replace(
            self,
            images=torch.cat([one.images for one in all_rows]),
            strength=torch.cat([one.strength for one in all_rows]),
            context=context,
        )

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """Run the ControlNet on the rows on which it acts, and add what comes out.

        Raises:
            ShapeError: if the images do not have the size that the latents want.
        """
        _check_size(self, call.latents)
        schedule = self.schedule
        gate = window_gate(schedule.window, call.t, schedule.total, schedule.timesteps)
        strength = self.strength.to(call.latents) * gate.to(call.latents)
        chosen = strength.nonzero()[:, 0]
        if len(chosen) == 0:
            return call
        down, mid = self._residuals(call, chosen, strength[chosen])
        down = [scatter_rows(part, chosen, len(strength)) for part in down]
        return call.with_residuals(down, scatter_rows(mid, chosen, len(strength)))

    def _residuals(
        self, call: DenoiserCall, chosen: Tensor, strength: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        model = self.control.model
        parameter = next(model.parameters())
        labels = call.class_labels if model.class_embedding is not None else None
        added = call.added if model.config.addition_embed_type is not None else None
        seen = call.tokens if self.context is None else self.context
        down, mid = model(
            call.latents[chosen].to(parameter),
            call.t[chosen].to(parameter.device),
            encoder_hidden_states=seen[chosen.to(seen.device)].to(parameter),
            controlnet_cond=self.images[chosen.to(self.images.device)].movedim(-1, 1).to(parameter),
            class_labels=None if labels is None else labels[chosen].to(parameter),
            added_cond_kwargs=added and {k: v[chosen].to(parameter) for k, v in added.items()},
            return_dict=False,
        )
        weights = layer_weights(len(down) + 1, decays=_decays(self.control))
        strength = strength.reshape(-1, 1, 1, 1)
        parts = [
            _masked(part.to(strength) * (strength * weight), self.control.mask)
            for part, weight in zip([*down, mid], weights, strict=True)
        ]
        return parts[:-1], parts[-1]


def layer_weights(count: int, *, decays: bool) -> list[float]:
    """Factor of each residual, the middle block's last: 1, or from 0.1 for the finest up to 1."""
    return torch.logspace(-1.0, 0.0, count).tolist() if decays else [1.0] * count


def window_gate(
    window: ControlWindow,
    t: Int[Tensor, " rows"],
    num_train_timesteps: int,
    timesteps: Sequence[int] | None,
) -> Bool[Tensor, " rows"]:
    """Whether a control acts at each row's timestep.

    Args:
        window: when it acts.
        t: timesteps.
        num_train_timesteps: T, what windows by noise refer to.
        timesteps: those of a sampler's steps in order, or None outside of a sampler.

    Raises:
        StudioError: a window by steps, and the steps are not known.
    """
    if isinstance(window, NoiseWindow):
        share = t / num_train_timesteps
        return (share >= window.low) & (share <= window.high)
    if window.is_always_on:
        return torch.ones_like(t, dtype=torch.bool)
    places = {} if timesteps is None else {step: k for k, step in enumerate(timesteps)}
    unknown = [step for step in t.tolist() if step not in places]
    if unknown:
        raise StudioError(
            f"A control acts from {window.start} to {window.end} of the steps, and timestep "
            f"{unknown[0]} is no known step. Sample inside ControlledPrior.sampling(timesteps), or "
            "give the control a window of kind noise."
        )
    count = len(places)
    inside = [
        places[step] / count >= window.start and (places[step] + 1) / count <= window.end
        for step in t.tolist()
    ]
    return torch.tensor(inside, device=t.device)


def condition_stride(model: nn.Module) -> int:
    """Pixels of a condition image for each latent along an axis."""
    return 2 ** (len(model.config.conditioning_embedding_out_channels) - 1)


def check_condition_image(images: Tensor, name: str, channels: int) -> None:
    """Refuse what is no batch of condition images.

    Raises:
        ShapeError: if the shape is not [b, h, w, channels].
        StudioError: if values lie outside of 0..1.
    """
    check_shape(f"control '{name}'", images, f"B H W {channels}")
    low, high = float(images.detach().min()), float(images.detach().max())
    if not (low >= -RANGE_TOLERANCE and high <= 1.0 + RANGE_TOLERANCE):
        raise StudioError(
            f"Images of control '{name}' have values from {low:.3g} to {high:.3g} - expected 0 to "
            "1. Divide bytes by 255; do not centre them around 0. For an inpainting ControlNet, "
            "whose holes are -1, see Control.has_holes."
        )


def image_with_holes(
    images: Float[Tensor, "b h w k"], mask: Float[Tensor, "b h w 1"]
) -> Float[Tensor, "b h w k"]:
    """What an inpainting ControlNet is shown: pictures, and -1 where the mask is above a half."""
    return torch.where(mask > 0.5, torch.full_like(images, HOLE), images)


def _check_images(control: Control, images: Tensor) -> None:
    """Holes count as black, where a control has them."""
    if control.has_holes:
        is_hole = (images == HOLE).all(dim=-1, keepdim=True)
        images = images.masked_fill(is_hole, 0.0)
    check_condition_image(images, control.name, _channels(control.model))


def _context_rows(
    control: Control, condition: Condition, rows: int, *, is_cond: bool
) -> Float[Tensor, "rows n width"] | None:
    if control.context is None:
        return None
    name = f"the context of control '{control.name}'"
    told, untold = (rows_of(tokens, rows, name) for tokens in control.context)
    sees = conditional_rows(condition, rows, is_cond=is_cond).to(told.device)
    return torch.where(sees[:, None, None], told, untold)


def _masked(residual: Float[Tensor, "rows c h w"], mask: Tensor | None) -> Tensor:
    """A residual where a mask, averaged over its cells, lets it through."""
    if mask is None:
        return residual
    return residual * F.adaptive_avg_pool2d(mask[None].to(residual), residual.shape[-2:])


def _check_size(addition: ResidualAddition, latents: Tensor) -> None:
    stride, found = condition_stride(addition.control.model), addition.images.shape[1:3]
    wanted = tuple(side * stride for side in latents.shape[-2:])
    if tuple(found) != wanted:
        raise ShapeError(
            f"Images of control '{addition.control.name}' are {found[0]}x{found[1]} pixels, "
            f"expected {wanted[0]}x{wanted[1]} for latents of {latents.shape[-2]}x"
            f"{latents.shape[-1]}. Make them at the prior's image size."
        )


def _check_fits(control: Control, prior: NoisePrior) -> None:
    """A ControlNet fits the design of the denoiser that it was copied from."""
    mine, theirs = control.model.config, prior.unet.config
    names = ("cross_attention_dim", "block_out_channels", "layers_per_block")
    values = {name: (mine[name], theirs[name]) for name in names}
    values["in_channels"] = (mine["in_channels"], prior.latent_channels)
    for name, (found, wanted) in values.items():
        # Files hold lists, code tuples.
        if _plain(found) != _plain(wanted):
            raise UnsupportedModel(
                f"Control '{control.name}' has {name} {_plain(found)}, the prior {_plain(wanted)}. "
                "Expected a ControlNet trained for this prior's family; name another, or change "
                "the prior."
            )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, list | tuple) else value


def _channels(model: nn.Module) -> int:
    return model.config.conditioning_channels


def _is_cond_only(control: Control) -> bool:
    """ControlNets that pool their residuals (shuffle) were trained to act on the prompt's half."""
    return control.mode == "control" or control.model.config.global_pool_conditions


def _decays(control: Control) -> bool:
    return control.mode != "balanced" and not control.model.config.global_pool_conditions
