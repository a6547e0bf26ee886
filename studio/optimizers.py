"""Adam and AdamW with rates by parameter group and schedule, and their state as plain tensors.

The moments are stored under the parameters' own names, so that a checkpoint can be read and does
not depend on an order.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from guidance.schedules import value_at
from studio.configs import AdamWConfig, OptimizerConfig
from studio.errors import CheckpointError

__all__ = ["build_optimizer", "load_optimizer", "optimizer_tensors", "set_learning_rates"]

FUSED_DEVICES = {"cpu", "cuda"}


def build_optimizer(
    config: OptimizerConfig, groups: Mapping[str, list[nn.Parameter]]
) -> torch.optim.Optimizer:
    """Adam over named groups (``grid``, ``network``, ``background``); empty groups are dropped."""
    used = {name: params for name, params in groups.items() if params}
    fused = {p.device.type for params in used.values() for p in params} <= FUSED_DEVICES
    named = [
        {"params": params, "name": name, "lr": value_at(getattr(config, name), 0.0)}
        for name, params in used.items()
    ]
    betas, eps = config.betas, config.eps
    if isinstance(config, AdamWConfig):
        decay = config.weight_decay
        return torch.optim.AdamW(named, betas=betas, eps=eps, weight_decay=decay, fused=fused)
    return torch.optim.Adam(named, betas=betas, eps=eps, fused=fused)


def set_learning_rates(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, fraction: float
) -> None:
    """Set each group's rate for a fraction (0 to 1) of the stage."""
    for group in optimizer.param_groups:
        group["lr"] = value_at(getattr(config, group["name"]), fraction)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Adam's state, as ``parameter name/exp_avg`` and so on."""
    return {
        f"{name}/{key}": value
        for name, parameter in names.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put Adam into the state that ``optimizer_tensors`` gave.

    Raises:
        CheckpointError: a moment has another shape than its parameter.
    """
    saved = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    index = {id(parameter): number for number, parameter in enumerate(order)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, slash, entry = key.rpartition("/")
        if not slash or name not in names:
            continue
        if value.ndim and value.shape != names[name].shape:
            raise CheckpointError(
                f"Optimiser state '{key}' has shape {tuple(value.shape)} - expected "
                f"{tuple(names[name].shape)}. The checkpoint belongs to another scene."
            )
        state.setdefault(index[id(names[name])], {})[entry] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": saved["param_groups"]})
