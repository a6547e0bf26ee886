"""All speed benchmarks, one after the other.

python -m benchmarks            # what `make bench` runs, minutes on an idle machine
python -m benchmarks --smoke    # seconds, checks that they run
"""

from __future__ import annotations

import sys

from benchmarks.renderers import bench_mesh, bench_volume

if __name__ == "__main__":
    missed = [suite.main(sys.argv[1:]) for suite in (bench_volume, bench_mesh)]
    raise SystemExit(max(missed))
