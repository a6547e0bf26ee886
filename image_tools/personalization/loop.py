"""The loop that all personalization trainers share: resumable, on `accelerate`, over named tensors.

`accelerate` decides about mixed precision and accumulation. Gradients that pass through float16, of
mixed precision or of a frozen denoiser, are scaled on their way, on a CPU too: small ones would
become zero. The trainer puts its modules on a device and hands over the very parameters to train,
float32. Nothing else is ever stepped, and their ``requires_grad`` is set again before every batch,
because switching adapters in peft changes it.

A training folder holds ``state.safetensors`` (parameters and optimizer moments; in its header the
step, the seconds and what they are a training of), ``checkpoints/step-000080.safetensors`` and
``log.csv``. Every file is written aside and renamed, so a training that is killed at any moment
goes on from a save that fits together; on a CPU it goes on bit for bit. Batch k depends only on
(seed, k): a trainer draws everything from the generator it is given.

    loop = TuningLoop([ParameterGroup(named)], config, folder, device=device, identity="...")
    loop.run(lambda batch, generator: loss(batch, generator), LoopHooks(log=print))
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from image_tools.diffusion.weight_writing import write_safetensors
from image_tools.personalization.loop_configs import TuningConfig
from renderers.errors import StudioError

__all__ = [
    "LoopHooks",
    "ParameterGroup",
    "TrainingDiverged",
    "TuningLoop",
    "batch_generator",
    "rate_share",
]

LOG_HEADER = "step,loss,gradient_norm,learning_rate,seconds\n"
PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}
# So many updates in a row without a finite gradient mean that the training is lost.
MAX_SKIPPED = 20


class TrainingDiverged(StudioError):
    """Losses or gradients of a training are no longer numbers."""

    exit_code = 4


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters trained alike."""

    parameters: Mapping[str, nn.Parameter]
    """By a name that is unique in the training; the name in checkpoints."""
    learning_rate: float | None = None
    """Peak learning rate; None for the loop's."""
    weight_decay: float | None = None
    """Weight decay; None for the loop's."""


def _ignore(_: Any) -> None:
    """What happens where a hook is not given."""


@dataclass(frozen=True)
class LoopHooks:
    """What a trainer does besides computing losses; all of it may be left out."""

    log: Callable[[str], None] = _ignore
    """Gets a line for people every ``log_every`` steps."""
    after_step: Callable[[int], None] = _ignore
    """Called after each optimizer step with the steps done, for instance to keep norms."""
    checkpoint: Callable[[int], None] = _ignore
    """Called at ``checkpoint_steps`` after the loop's own file is written."""
    sample: Callable[[int], None] = _ignore
    """Called before the first step and every ``sample_every`` steps with the steps done."""
    should_stop: Callable[[], bool] = lambda: False
    """Asked after each step; True ends the run early with the state saved."""


class TuningLoop:
    """Runs ``loss_fn(batch, generator) -> loss`` over an explicit list of parameters."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        config: TuningConfig,
        folder: Path,
        *,
        device: torch.device,
        identity: str = "",
        frozen_dtype: torch.dtype = torch.float32,
    ) -> None:
        """Load the state in ``folder`` if there is one.

        Args:
            groups: what is trained; parameters live on ``device`` and are float32.
            config: settings.
            folder: the training's own.
            device: where the forward passes run.
            identity: settings and data that a resumed training must share with the first one.
            frozen_dtype: number format of the frozen modules that gradients pass through.

        Raises:
            StudioError: a parameter is not float32, the precision does not fit the device, or the
                folder holds another training.
        """
        self.config, self.folder, self.device = config, folder, device
        self.identity = identity
        self.parameters: dict[str, nn.Parameter] = {}
        for group in groups:
            self._adopt(group)
        folder.mkdir(parents=True, exist_ok=True)
        self._optimizer = _make_optimizer(groups, config, device)
        self._rates = [g["lr"] for g in self._optimizer.param_groups]
        self._accelerator = _make_accelerator(config, device, frozen_dtype)
        self._stepper = self._accelerator.prepare(self._optimizer)
        self.step, self.seconds, self.skipped = 0, 0.0, 0
        self._recent: list[float] = []
        if self.state_path.exists():
            self._load()

    @property
    def state_path(self) -> Path:
        """The one file that a resumed training reads."""
        return self.folder / "state.safetensors"

    def checkpoint_path(self, step: int) -> Path:
        """Where the parameters after ``step`` steps are kept."""
        return self.folder / "checkpoints" / f"step-{step:06d}.safetensors"

    def run(
        self, loss_fn: Callable[[int, torch.Generator], Tensor], hooks: LoopHooks | None = None
    ) -> bool:
        """Train to ``config.steps``.

        Args:
            loss_fn: the mean loss of batch number k, which draws from the generator only.
            hooks: what to do besides.

        Returns:
            whether all steps are done; False if ``should_stop`` ended it before.

        Raises:
            TrainingDiverged: gradients stay without finite numbers. The last save is kept.
        """
        hooks = hooks or LoopHooks()
        started, before = time.monotonic(), self.seconds
        if self.step == 0 and self.config.sample_every:
            hooks.sample(0)
        while self.step < self.config.steps:
            loss, norm = self._one_step(loss_fn)
            self.step += 1
            self._recent.append(loss)
            self.seconds = before + time.monotonic() - started
            hooks.after_step(self.step)
            if self.step % self.config.log_every == 0 or self.step == self.config.steps:
                self._log(norm, hooks.log)
            self._keep(hooks)
            if self.step < self.config.steps and hooks.should_stop():
                self.save()
                return False
        return True

    def save(self) -> None:
        """Write the state: tensors and the step they belong to appear by one rename."""
        tensors = {f"parameter.{n}": p.detach() for n, p in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{name}.{key}"] = value
        scaler = self._accelerator.scaler
        progress = {
            "step": self.step,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "recent": self._recent,
            "scaler": scaler.state_dict() if scaler is not None else None,
        }
        header = {"progress": json.dumps(progress), "identity": self.identity}
        write_safetensors(self.state_path, tensors, header)

    def _adopt(self, group: ParameterGroup) -> None:
        for name, parameter in group.parameters.items():
            if name in self.parameters:
                raise ValueError(f"Two parameters are named '{name}'. Give each its own name.")
            if parameter.dtype != torch.float32:
                raise StudioError(
                    f"The parameter '{name}' is {parameter.dtype} - expected float32, which small "
                    "updates need. Load the prior with dtype: float32 and set precision instead."
                )
            self.parameters[name] = parameter

    def _one_step(self, loss_fn: Callable[[int, torch.Generator], Tensor]) -> tuple[float, float]:
        """All batches of one optimizer step; their mean loss and the gradient's norm."""
        self._set_rates()
        total, count = 0.0, self.config.accumulate
        for index in range(self.step * count, (self.step + 1) * count):
            for parameter in self.parameters.values():
                parameter.requires_grad_(True)
            generator = batch_generator(self.config.seed, index)
            with self._accelerator.accumulate(), torch.enable_grad():
                with self._accelerator.autocast():
                    loss = loss_fn(index, generator)
                self._accelerator.backward(loss)
            total += float(loss.detach())
        if self._accelerator.scaler is not None and self.config.precision != "float16":
            self._accelerator.scaler.unscale_(self._optimizer)  # accelerate does it for its own
        limit = self.config.clip_norm or math.inf
        norm = float(self._accelerator.clip_grad_norm_(self.parameters.values(), limit))
        self._update(norm)
        return total / count, norm

    def _update(self, norm: float) -> None:
        # The gradient scaler of float16 skips overflows by itself and must be told of them.
        if math.isfinite(norm) or self._accelerator.scaler is not None:
            self._stepper.step()
        self._stepper.zero_grad(set_to_none=True)
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        if self.skipped >= min(MAX_SKIPPED, self.config.steps):
            raise TrainingDiverged(
                f"The last {self.skipped} gradients before step {self.step + 1} were not finite - "
                f"expected numbers. Lower the learning rate ({self.config.learning_rate:g}) or use "
                f"precision: float32; {self.folder} keeps the last save."
            )

    def _set_rates(self) -> None:
        share = rate_share(self.step, self.config)
        for group, peak in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = peak * share

    def _keep(self, hooks: LoopHooks) -> None:
        """Checkpoint, sample and save where this step asks for it."""
        config, is_last = self.config, self.step == self.config.steps
        if self.step in config.checkpoint_steps:
            tensors = {name: parameter.detach() for name, parameter in self.parameters.items()}
            write_safetensors(self.checkpoint_path(self.step), tensors, {"step": str(self.step)})
            hooks.checkpoint(self.step)
        if config.sample_every and (self.step % config.sample_every == 0 or is_last):
            hooks.sample(self.step)
        if self.step % config.save_every == 0 or is_last:
            self.save()

    def _log(self, norm: float, log: Callable[[str], None]) -> None:
        path, loss = self.folder / "log.csv", sum(self._recent) / len(self._recent)
        self._recent = []
        rate = self.config.learning_rate * rate_share(self.step - 1, self.config)
        row = f"{self.step},{loss:.6g},{norm:.4g},{rate:.4g},{self.seconds:.1f}\n"
        with path.open("a") as file:
            file.write(row if file.tell() else LOG_HEADER + row)
        log(f"step {self.step}/{self.config.steps} loss {loss:.4f} {self.seconds:.0f} s")

    def _load(self) -> None:
        self._check_readable()
        try:
            with safe_open(self.state_path, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            progress = json.loads(header["progress"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise StudioError(
                f"The training state '{self.state_path}' cannot be read ({error}) - expected a "
                "state of this program. Remove the file to start again, or choose another folder."
            ) from error
        if header.get("identity") != self.identity:
            raise StudioError(
                f"'{self.folder}' holds a training with other settings or photos - expected the "
                "same, to go on with it. Choose another folder, or remove this one."
            )
        self._restore(tensors, progress)
        self._cut_log()

    def _check_readable(self) -> None:
        """Refuse a state that is there and whole, but not ours to read; safetensors tells it as
        one that is absent, and to start again would lose it."""
        try:
            self.state_path.open("rb").close()
        except OSError as error:
            raise StudioError(
                f"The training state '{self.state_path}' cannot be opened ({error.strerror}) - "
                "expected a file that you may read. Change its permissions, then go on."
            ) from error

    def _restore(self, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]) -> None:
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.skipped, self._recent = progress["skipped"], progress["recent"]
        for name, parameter in self.parameters.items():
            saved = tensors.get(f"parameter.{name}")
            if saved is None or saved.shape != parameter.shape:
                found = "absent" if saved is None else f"of shape {tuple(saved.shape)}"
                raise StudioError(
                    f"'{name}' in '{self.state_path}' is {found} - expected "
                    f"{tuple(parameter.shape)}. It belongs to another model; choose another folder."
                )
            with torch.no_grad():
                parameter.copy_(saved)
            prefix = f"optimizer.{name}."
            moments = {
                key.removeprefix(prefix): value.to(parameter.device)
                for key, value in tensors.items()
                if key.startswith(prefix)
            }
            if moments:
                self._optimizer.state[parameter] = moments
        if progress["scaler"] and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(progress["scaler"])

    def _cut_log(self) -> None:
        """Drop lines of steps that are made again."""
        path = self.folder / "log.csv"
        if not path.exists():
            return
        # A process that is killed while it writes leaves part of a line.
        lines = path.read_text(errors="replace").splitlines(keepends=True)
        steps = [line.partition(",")[0] if line.endswith("\n") else "" for line in lines]
        known = [int(step) if step.isdecimal() else math.inf for step in steps]
        kept = [line for line, step in zip(lines, known, strict=True) if step <= self.step]
        partial = path.with_suffix(".csv.tmp")
        partial.write_text(LOG_HEADER + "".join(kept))
        partial.replace(path)


def batch_generator(seed: int, index: int) -> torch.Generator:
    """A CPU generator for batch ``index``, independent of all other batches and seeds."""
    state = np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))


def rate_share(step: int, config: TuningConfig) -> float:
    """Learning rate of step number ``step``, from 0, as a share of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    if config.schedule == "linear":
        return max(0.0, 1.0 - done)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def _make_optimizer(
    groups: Sequence[ParameterGroup], config: TuningConfig, device: torch.device
) -> torch.optim.Optimizer:
    def own(value: float | None, default: float) -> float:
        return default if value is None else value

    settings = [
        {
            "params": list(group.parameters.values()),
            "lr": own(group.learning_rate, config.learning_rate),
            "weight_decay": own(group.weight_decay, config.weight_decay),
        }
        for group in groups
    ]
    is_fused = device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        settings,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.epsilon,
        fused=is_fused,
    )


def _make_accelerator(config: TuningConfig, device: torch.device, frozen_dtype: torch.dtype) -> Any:
    """An accelerator of this training's own settings.

    accelerate keeps one state per process and refuses to change it, but trainings that follow each
    other may differ in precision or device.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if config.precision == "float16" and device.type == "cpu":
        raise StudioError(
            "precision is float16 on a CPU - expected float32 or bfloat16 there. Set one of them, "
            "or a GPU as the device."
        )
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        device_placement=False,
        mixed_precision=PRECISIONS[config.precision],
        gradient_accumulation_steps=config.accumulate,
        cpu=device.type == "cpu",
    )
    if accelerator.scaler is None and frozen_dtype == torch.float16:
        accelerator.scaler = torch.amp.GradScaler(device.type)
    return accelerator
