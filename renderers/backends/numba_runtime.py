"""The one lock around numba kernels.

numba's ``workqueue`` threading layer aborts the process when two Python threads enter a parallel
kernel at once, and the layer that is chosen depends on the machine, so every kernel call is made
while holding this lock.
"""

from __future__ import annotations

import threading

__all__ = ["KERNEL_LOCK"]

KERNEL_LOCK = threading.RLock()
