"""What every training recipe shares: EMA, cosine learning rate, resumable checkpoints, a log.

A training folder holds ``state.safetensors`` (weights, EMA, optimizer moments, and in its header
the step and the seconds they belong to), ``state.json`` (step and seconds again, for people) and
``log.csv``. The state is one file, written aside and renamed, so a run that is killed at any moment
continues from a save that fits together. Batch k depends only on (seed, k).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.personalization.loop import MAX_SKIPPED, TrainingDiverged

__all__ = ["LoopConfig", "TrainingLoop", "cosine_rate", "on_device"]


@dataclass(frozen=True)
class LoopConfig:
    """Length, learning rate and bookkeeping of one training."""

    steps: int
    """Optimizer steps in all."""
    learning_rate: float = 5e-4
    """Peak learning rate of AdamW."""
    warmup: int = 200
    """Steps of linear warm-up."""
    final_rate: float = 0.05
    """Learning rate at the end as a share of the peak (cosine)."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; the early decay is smaller, (1 + n) / (10 + n)."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    clip_norm: float = 1.0
    """Gradient norm limit."""
    save_every_s: float = 240.0
    """Seconds between two saves."""
    log_every: int = 50
    """Steps between two log lines."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What matrix products and convolutions compute in; weights and their averages stay float32."""


def cosine_rate(step: int, config: LoopConfig) -> float:
    """Learning rate at ``step``: linear warm-up, then cosine to ``final_rate`` of the peak."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    x = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    share = config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * x))
    return config.learning_rate * share


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` there; the host goes on while it travels to an accelerator."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class TrainingLoop:
    """Runs ``loss_fn(step) -> loss`` with AdamW, EMA, clipping, saving and logging."""

    def __init__(self, model: nn.Module, config: LoopConfig, folder: Path) -> None:
        """Load the state in ``folder`` if there is one."""
        self.model, self.config, self.folder = model, config, folder
        folder.mkdir(parents=True, exist_ok=True)
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=config.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.ema = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.step, self.seconds = 0, 0.0
        self._skipped = torch.zeros((), device=next(iter(self.parameters.values())).device)
        if self.state_path.exists():
            self._load()

    @property
    def state_path(self) -> Path:
        """The one file that a resumed training reads."""
        return self.folder / "state.safetensors"

    def run(self, loss_fn: Callable[[int], Tensor], *, log: Callable[[str], None]) -> None:
        """Train to ``config.steps``; returns early only by an exception (state is kept).

        Raises:
            TrainingDiverged: gradients stay without finite numbers.
        """
        started, saved, recent = time.monotonic(), time.monotonic(), []
        before = self.seconds
        while self.step < self.config.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = cosine_rate(self.step, self.config)
            # Every weight is used once a step, and graphs cannot be captured over a cache.
            with torch.autocast(*self._autocast, cache_enabled=False):
                loss = loss_fn(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.config.clip_norm)
            # Asking here whether it is finite would make the host wait for the device.
            lost = (~torch.isfinite(norm)).float()
            self.optimizer.found_inf = lost
            self._skipped = (self._skipped + lost) * lost
            self.optimizer.step()
            self._average()
            self.step += 1
            recent.append(loss.detach())
            self.seconds = before + time.monotonic() - started
            if self.step % self.config.log_every == 0:
                self._log(float(torch.stack(recent).mean()), float(norm), log)
                self._check()
                recent = []
            if time.monotonic() - saved > self.config.save_every_s:
                self.save()
                saved = time.monotonic()
        self._check()
        self.save()

    def _check(self) -> None:
        """Refuse to go on where the last updates all lacked finite gradients."""
        if self._skipped >= min(MAX_SKIPPED, self.config.steps):
            raise TrainingDiverged(
                f"The last {int(self._skipped)} gradients before step {self.step} were not finite "
                f"- expected numbers. Lower the learning rate ({self.config.learning_rate:g}) or "
                f"use precision float32; {self.folder} keeps the last save."
            )

    @property
    def _autocast(self) -> tuple[str, torch.dtype, bool]:
        """Kind of device, type and whether to cast at all."""
        device = next(iter(self.parameters.values())).device.type
        return device, torch.bfloat16, self.config.precision == "bfloat16"

    @torch.no_grad()
    def _average(self) -> None:
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        averages = list(self.ema.values())
        torch._foreach_lerp_(averages, [p.detach() for p in self.parameters.values()], 1 - decay)

    def _log(self, loss: float, norm: float, log: Callable[[str], None]) -> None:
        rate = cosine_rate(self.step, self.config)
        with (self.folder / "log.csv").open("a") as file:
            file.write(f"{self.step},{loss:.6f},{norm:.4f},{rate:.3e},{self.seconds:.1f}\n")
        log(f"step {self.step}/{self.config.steps} loss {loss:.4f} {self.seconds:.0f} s")

    def save(self) -> None:
        """Write the state: tensors and the step they belong to appear by one rename."""
        tensors = {f"model.{n}": p.detach() for n, p in self.model.state_dict().items()}
        tensors |= {f"ema.{n}": p for n, p in self.ema.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        progress = json.dumps({"step": self.step, "seconds": self.seconds})
        write_safetensors(self.state_path, tensors, {"progress": progress})
        partial = self.folder / "state.json.tmp"
        partial.write_text(progress)
        partial.replace(self.folder / "state.json")

    def _load(self) -> None:
        with safe_open(self.state_path, "pt") as file:
            header = file.metadata() or {}
        # Files written before the header held the step have it beside them.
        progress = header.get("progress") or (self.folder / "state.json").read_text()
        info = json.loads(progress)
        self.step, self.seconds = info["step"], info["seconds"]
        tensors = load_file(self.state_path)
        self.model.load_state_dict({n[6:]: t for n, t in tensors.items() if n.startswith("model.")})
        for name, parameter in self.parameters.items():
            self.ema[name].copy_(tensors[f"ema.{name}"])
            prefix = f"optimizer.{name}."
            found = {n[len(prefix) :]: t for n, t in tensors.items() if n.startswith(prefix)}
            # A fused optimizer wants its moments, and even its step count, beside the parameter. It
            # walks through both as they lie in memory, which files do not keep (channels last).
            state = {
                key: torch.empty_like(parameter).copy_(tensor)
                if tensor.shape == parameter.shape
                else tensor.to(parameter.device)
                for key, tensor in found.items()
            }
            if state:
                self.optimizer.state[parameter] = state

    def load_average(self) -> None:
        """Put the averaged weights into the model."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.ema[name])
