"""Trainings that change a module in place, and go on with it in the same process.

What a training is of is told by a digest of the module as it was at the beginning. A process that
stops such a training and calls it again hands over the module as the training left it, whose digest
is another one. So what a training leaves is noted here, with what it began from.

    with in_place(prior.unet, folder, lambda: prior.fingerprint) as began:
        loop = TuningLoop(groups, config.loop, folder, device=prior.device, identity=began)
        loop.run(loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

from torch import nn

__all__ = ["in_place"]


@dataclass(frozen=True)
class _Left:
    """A module as a training left it."""

    folder: Path
    began: str
    now: str


_LEFT: WeakKeyDictionary[nn.Module, _Left] = WeakKeyDictionary()


@contextmanager
def in_place(module: nn.Module, folder: Path, digest: Callable[[], str]) -> Iterator[str]:
    """A training of ``module`` in ``folder``.

    Args:
        module: what is trained.
        folder: the training's own. Where its state is gone, a training begins there anew.
        digest: of the module, and of what else the training depends on, as they are now.

    Yields:
        The digest from which the training in ``folder`` began: that of now, unless ``folder`` is
        where this very module, unchanged since, was trained last.
    """
    before, place = digest(), folder.resolve()
    left, has_state = _LEFT.get(module), (place / "state.safetensors").exists()
    goes_on = left is not None and (left.folder, left.now) == (place, before) and has_state
    began = left.began if goes_on else before
    try:
        yield began
    finally:
        # A call that was refused changed nothing, and the module is still what another one left.
        if (now := digest()) != before:
            _LEFT[module] = _Left(place, began, now)
