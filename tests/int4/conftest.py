"""Leaves the GPU's memory to whoever asks: several test processes may share one card."""

import os

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
