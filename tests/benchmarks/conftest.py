"""Makes the benchmarks' modules importable the way ``python benchmarks/bench_paged.py`` does."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
