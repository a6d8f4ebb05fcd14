"""Makes the examples importable as ``python examples/train.py`` does, and helpers of the tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
