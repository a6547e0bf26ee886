"""The `studio lora` verbs and their options. Bodies are in ``studio.commands.lora``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studio.options import Json
from studio.usage import VerbGroup

__all__ = ["lora_app"]

lora_app = typer.Typer(
    name="lora",
    cls=VerbGroup,
    help="Look at, convert, merge and extract LoRA files.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="LoRA file in any layout, or its folder.", show_default=False
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        help="The .safetensors file, or a folder for pytorch_lora_weights.safetensors.",
        show_default=False,
    ),
]
To = Annotated[str, typer.Option(help="Layout: diffusers, peft or kohya (A1111, ComfyUI).")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, float16 or bfloat16.", show_default=False)
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


@lora_app.command("inspect")
def inspect(path: FileArgument, as_json: Json = False) -> None:
    """Say what a file holds: layout, base model, ranks, strength."""
    from studio.commands import lora as command

    command.inspect(path, as_json=as_json)


@lora_app.command("convert")
def convert(
    path: FileArgument,
    out: Out = ...,
    to: To = "diffusers",
    scale: Annotated[float, typer.Option(help="Factor of the change.")] = 1.0,
    rank: Annotated[int | None, typer.Option(help="Largest rank; cuts what has more.")] = None,
    dtype: Dtype = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write a LoRA in another layout, with its true alpha."""
    from studio.commands import lora as command

    target = command.Target(out, to, dtype, force)
    command.convert(path, target, scale=scale, rank=rank, as_json=as_json)


@lora_app.command("merge")
def merge(
    paths: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="LoRA files.", show_default=False)
    ],
    out: Out = ...,
    weights: Annotated[
        str | None, typer.Option(help="Factors by commas, such as 1,0.6; all 1 without.")
    ] = None,
    method: Annotated[
        str, typer.Option(help="sum (exact), svd, magnitude_prune, ties, dare_linear, dare_ties.")
    ] = "sum",
    rank: Annotated[
        int | None, typer.Option(help="Rank of the result; sum keeps all, others the largest.")
    ] = None,
    density: Annotated[
        float, typer.Option(help="Share of entries that prune, ties and dare keep.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Decides what dare drops.")] = 0,
    to: To = "diffusers",
    dtype: Dtype = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make one LoRA of several for the same kind of model."""
    from studio.commands import lora as command

    target = command.Target(out, to, dtype, force)
    rule = command.MergeRule(method, rank, density, seed)
    command.merge(paths, target, weights=weights, rule=rule, as_json=as_json)


@lora_app.command("extract")
def extract(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Folder or hub id of the model before training.")
    ],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="Folder or hub id of the model after it.")
    ],
    out: Out = ...,
    rank: Annotated[int, typer.Option(help="Rank of every layer.")] = 16,
    to: To = "diffusers",
    dtype: Dtype = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make a LoRA of the difference between two diffusers models."""
    from studio.commands import lora as command

    target = command.Target(out, to, dtype, force)
    command.extract(base, tuned, target, rank=rank, as_json=as_json)
