"""Uni-ControlNet (arXiv 2305.16322): any subset of maps, and the look of an image, in one prior.

One local adapter serves all maps (edges, depth, regions, ...): what is not given is zeros. One
global adapter appends tokens made of an image's embedding to the text, which the denoiser and the
local adapter read alike; the unconditional half gets the tokens of an embedding of zeros, not zero
tokens. Maps act on both halves.

    prior = UniControlledPrior(prior, local, maps={"midas": depth, "seg": regions})

Deviation: with ``content_strength`` 0 no tokens are appended, where the authors append zeros, so
that the tool switched off is the inner prior bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from image_tools.control.controlnet import check_condition_image
from image_tools.control.uni_adapters import GlobalAdapter, LocalAdapter
from image_tools.control.uni_configs import UniDropoutConfig
from image_tools.diffusion.additions import DenoiserCall, scatter_rows
from image_tools.diffusion.conditions import Condition, TextEmbedding
from image_tools.diffusion.modified import ModifiedPrior, rows_of
from image_tools.diffusion.protocol import NoisePrior
from image_tools.errors import UnsupportedModel
from renderers.errors import ShapeError, StudioError, check_shape

__all__ = ["LocalAddition", "UniControlledPrior", "draw_kept", "stack_maps"]


class UniControlledPrior(ModifiedPrior):
    """A prior with Uni-ControlNet's adapters."""

    def __init__(
        self,
        plain: NoisePrior,
        local: LocalAdapter | None = None,
        content: GlobalAdapter | None = None,
        *,
        maps: Mapping[str, Float[Tensor, "b h w 3"]] | None = None,
        embedding: Float[Tensor, "b d"] | None = None,
        strength: float = 1.0,
        content_strength: float = 1.0,
    ) -> None:
        """Wrap a prior.

        Args:
            plain: the prior that the adapters were trained for.
            local: adapter of maps.
            content: adapter of image embeddings.
            maps: images in 0..1 by the name of their condition, at the prior's image size; one, or
                one for each latent. None or empty: no local control.
            embedding: image embeddings as the adapter was trained on (CLIP's, not normalised).
            strength: factor of the local adapter's residuals.
            content_strength: factor of the appended tokens.

        Raises:
            StudioError: maps or embeddings without their adapter, unknown names, values out of
                range; ShapeError for other shapes.
            UnsupportedModel: tokens of another width than the text's.
        """
        super().__init__(plain)
        for adapter in (local, content):
            if adapter is not None:
                adapter.eval().requires_grad_(False)
        self.local, self.content = local, content
        self.strength, self.content_strength = strength, content_strength
        self.maps: Tensor | None = None
        self.embedding: Tensor | None = None
        self.show(maps, embedding)

    def show(
        self,
        maps: Mapping[str, Float[Tensor, "b h w 3"]] | None = None,
        embedding: Float[Tensor, "b d"] | None = None,
    ) -> None:
        """Use other maps and embeddings, such as those of a step's cameras; None for none."""
        if maps and self.local is None:
            raise StudioError(
                f"maps {', '.join(maps)} came without a local adapter. Read one, or give no maps."
            )
        if embedding is not None and self.content is None:
            raise StudioError(
                "An embedding came without a global adapter. Read one, or give no embedding."
            )
        if embedding is not None:
            check_shape("embedding", embedding, f"B {self.content.settings.width}")
        self.maps = stack_maps(maps, self.local.settings.conditions) if maps else None
        self.embedding = embedding

    def modify(self, condition: Condition, rows: int, *, is_cond: bool) -> Condition:
        """The condition with tokens of the content and the local adapter's residuals."""
        if self.embedding is not None and self.content_strength != 0.0:
            condition = condition.expand(rows)
            tokens = self._content_tokens(rows, is_cond=is_cond)
            condition = replace(condition, text=_appended(condition.text, tokens))
        if self.maps is not None and self.strength != 0.0:
            condition = condition.expand(rows)
            maps = rows_of(self.maps, rows, "Uni-ControlNet")
            addition = LocalAddition(self.local, maps, maps.new_full((rows,), self.strength))
            condition = replace(condition, additions=(*condition.additions, addition))
        return condition

    def _content_tokens(self, rows: int, *, is_cond: bool) -> Float[Tensor, "rows n d"]:
        embedding = rows_of(self.embedding, rows, "the content's embedding")
        embedding = embedding.to(next(self.content.parameters()))
        tokens = self.content(embedding if is_cond else torch.zeros_like(embedding))
        return self.content_strength * tokens


@dataclass(frozen=True)
class LocalAddition:
    """The local adapter's residuals for the rows of a denoiser call."""

    adapter: LocalAdapter
    maps: Float[Tensor, "rows h w k"]
    strength: Float[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.maps)

    def expand(self, rows: int) -> LocalAddition:
        """Itself, which has all rows already.

        Raises:
            ValueError: if it has another number of rows.
        """
        if len(self) != rows:
            raise ValueError(f"maps have {len(self)} rows for {rows} latents. Give {rows}.")
        return self

    def stack(self, others: Sequence[LocalAddition]) -> LocalAddition:
        """More rows of the same adapter."""
        return replace(
            self,
            maps=torch.cat([self.maps, *(other.maps for other in others)]),
            strength=torch.cat([self.strength, *(other.strength for other in others)]),
        )

    def apply(self, call: DenoiserCall) -> DenoiserCall:
        """Run the adapter on the rows on which it acts, and add what comes out.

        Raises:
            ShapeError: if the maps do not have the size that the latents want.
        """
        factor = self.adapter.settings.image_factor
        found = tuple(self.maps.shape[1:3])
        wanted = tuple(side * factor for side in call.latents.shape[-2:])
        if found != wanted:
            raise ShapeError(
                f"Maps are {found[0]}x{found[1]} pixels, expected {wanted[0]}x{wanted[1]} for "
                f"latents of {call.latents.shape[-2]}x{call.latents.shape[-1]}. Make them at the "
                "prior's image size."
            )
        chosen = self.strength.nonzero()[:, 0]
        if len(chosen) == 0:
            return call
        parameter = next(self.adapter.parameters())
        down, mid = self.adapter(
            call.latents[chosen.to(call.latents.device)].to(parameter),
            call.t[chosen.to(call.t.device)].to(parameter.device),
            call.tokens[chosen.to(call.tokens.device)].to(parameter),
            self.maps[chosen].movedim(-1, 1).to(parameter),
        )
        strength = self.strength[chosen].to(call.latents).reshape(-1, 1, 1, 1)
        rows, chosen = len(self), chosen.to(call.latents.device)
        parts = [
            scatter_rows(part.to(call.latents) * strength, chosen, rows) for part in (*down, mid)
        ]
        return call.with_residuals(parts[:-1], parts[-1])


def stack_maps(
    maps: Mapping[str, Float[Tensor, "b h w 3"]], conditions: Sequence[str]
) -> Float[Tensor, "b h w k"]:
    """All maps on channels, in the adapter's order, zeros for what is absent.

    Raises:
        StudioError: unknown names, no maps, or values out of range; ShapeError for other shapes.
    """
    unknown = sorted(set(maps) - set(conditions))
    if unknown or not maps:
        raise StudioError(
            f"maps are {', '.join(unknown) or 'absent'} - expected some of "
            f"{', '.join(conditions)}, which this adapter was trained on."
        )
    shapes = {name: tuple(image.shape) for name, image in maps.items()}
    if len(set(shapes.values())) > 1:
        raise ShapeError(f"Maps have shapes {shapes}, expected equal ones. Make them alike.")
    for name, image in maps.items():
        check_condition_image(image, name, 3)
    empty = torch.zeros_like(next(iter(maps.values())))
    return torch.cat([maps.get(name, empty) for name in conditions], dim=-1)


def draw_kept(
    rows: int, conditions: int, config: UniDropoutConfig, *, generator: torch.Generator
) -> tuple[Bool[Tensor, "rows conditions"], Bool[Tensor, " rows"]]:
    """What a training batch shows: which conditions of each row, and whether its text."""
    fate = torch.rand(rows, generator=generator)
    each = torch.rand(rows, conditions, generator=generator) >= config.drop_each
    text = torch.rand(rows, generator=generator) >= config.text
    keeps_all = (fate < config.keep_all)[:, None]
    drops_all = (fate >= config.keep_all) & (fate < config.keep_all + config.drop_all)
    return (each | keeps_all) & ~drops_all[:, None], text


def _appended(text: TextEmbedding, tokens: Float[Tensor, "rows n d"]) -> TextEmbedding:
    """Text with more tokens; several texts side by side in their width get them all."""
    width, own = text.tokens.shape[-1], tokens.shape[-1]
    if width % own:
        raise UnsupportedModel(
            f"The global adapter makes tokens of {own} numbers, the text has {width}. Expected "
            "an adapter that was trained for this prior."
        )
    wide = tokens.repeat(1, 1, width // own).to(text.tokens)
    return replace(text, tokens=torch.cat([text.tokens, wide], dim=1))
