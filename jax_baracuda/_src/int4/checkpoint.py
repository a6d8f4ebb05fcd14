"""load_checkpoint: a Hugging Face folder of quantised safetensors, one layer at a time."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jax_baracuda._src.int4.schemes import Scheme, scheme_of
from jax_baracuda._src.int4.weight import Int4Weight

Value = Int4Weight | jax.Array
_INDEX = "model.safetensors.index.json"


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    dtype: DTypeLike | None = None,
    place: Callable[[str, Value], Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Reads a quantised checkpoint in Hugging Face's form: AWQ, GPTQ or compressed-tensors.

    The folder holds ``config.json`` with a ``quantization_config``, and ``model.safetensors``, or
    shards with ``model.safetensors.index.json``. Supported are, with four bits:

    - ``awq``: versions "gemm" and "gemv";
    - ``gptq``: checkpoint formats "gptq" and "gptq_v2", with ``desc_act`` or without;
    - ``compressed-tensors``: "pack-quantized", strategies "group" and "channel", symmetric or not,
      with ``actorder`` or without.

    Files are mapped and read layer by layer, each put into the kernels' image on jax's default
    device and then forgotten: the host holds one layer at a time (where the default device is not
    the host).

    Args:
      path: the folder.
      dtype: of scales and of all other floats, such as that of the activations; None keeps what is
        stored.
      place: called as ``place(name, value)`` with every value as soon as it is read; what it
        returns is kept. For instance ``jax.device_put`` to a sharding, so that no device ever holds
        the whole model.
      progress: show a bar on stderr, where tqdm is installed.

    Returns:
      Names to values. A quantised layer's ``Int4Weight``, of shape (IC, OC), is at
      "<layer>.weight", where a checkpoint that is not quantised has the matrix [OC, IC]. All else
      (biases, norms, embeddings, layers that were left out) are arrays as they are stored.

    Raises:
      FileNotFoundError: without config.json or safetensors.
      ImportError: without the package safetensors (``pip install 'jax-baracuda[quant]'``).
      ValueError: if the folder contradicts itself: a tensor is missing or has another shape than
        the config says.
      NotImplementedError: for what is not supported; it names the entry of the quantization_config.

    Example::

      >>> from jax_baracuda.quant import load_checkpoint
      >>> tensors = load_checkpoint("Llama-3.1-8B-Instruct-AWQ", dtype="bfloat16")  # doctest: +SKIP
      >>> tensors["model.layers.0.mlp.down_proj.weight"].shape  # doctest: +SKIP
      (14336, 4096)
    """
    folder = Path(path)
    scheme = scheme_of(_quantization_config(folder))
    files = _files(folder)
    with _Shards(folder, files) as shards, _bar(folder, set(files.values()), progress) as advance:
        loaded: dict[str, Any] = {}
        for name, tensors in _layers(scheme, files, shards):
            value = _value(folder, scheme, name, tensors, dtype)
            loaded[name] = value if place is None else place(name, value)
            advance(sum(tensor.nbytes for tensor in tensors.values()))
    return loaded


def _quantization_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json; it must be a Hugging Face folder.")
    config = json.loads((folder / "config.json").read_text())
    # Models with several parts have theirs one level down.
    places = (config, config.get("text_config") or {})
    found: Any = next(filter(None, (place.get("quantization_config") for place in places)), None)
    if not isinstance(found, dict):
        raise ValueError(
            f"{folder / 'config.json'} has no quantization_config: the checkpoint is not "
            "quantised. Quantise its matrices with Int4Weight.quantize."
        )
    return dict(found)


def _files(folder: Path) -> dict[str, str]:
    """The file of every tensor, in the order of the files."""
    if (folder / _INDEX).is_file():
        files: dict[str, str] = json.loads((folder / _INDEX).read_text())["weight_map"]
        missing = sorted(file for file in set(files.values()) if not (folder / file).is_file())
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which {_INDEX} names.")
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
        if len(names) != 1:
            raise FileNotFoundError(
                f"{folder} has {len(names)} safetensors files and no {_INDEX}; it must have "
                "model.safetensors, or shards with that index. Other formats are not supported."
            )
        with _Shards(folder, {}) as shards:
            files = dict.fromkeys(shards.open(names[0]).keys(), names[0])
    return dict(sorted(files.items(), key=lambda item: (item[1], item[0])))


class _Shards(contextlib.ExitStack):
    """The files of a checkpoint, opened when they are first read and closed at the end."""

    def __init__(self, folder: Path, files: dict[str, str]) -> None:
        super().__init__()
        self._folder, self._files = folder, files
        self._handles: dict[str, Any] = {}

    def open(self, file: str) -> Any:
        """Maps a file."""
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise ImportError(
                "load_checkpoint needs safetensors: pip install 'jax-baracuda[quant]'"
            ) from error
        if file not in self._handles:
            handle = safe_open(self._folder / file, framework="numpy")
            self._handles[file] = self.enter_context(handle)
        return self._handles[file]

    def read(self, name: str) -> np.ndarray:
        """A tensor on the host."""
        tensor: np.ndarray = self.open(self._files[name]).get_tensor(name)
        return tensor


def _layers(
    scheme: Scheme, files: dict[str, str], shards: _Shards
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(name, tensors by part) of every quantised layer; of all else, one tensor under ""."""
    quantised = {
        name.removesuffix(scheme.marker) for name in files if name.endswith(f".{scheme.marker}")
    }
    for name in files:
        layer, part = name[: name.rfind(".") + 1], name[name.rfind(".") + 1 :]
        if layer not in quantised or part not in scheme.parts:
            yield name, {"": shards.read(name)}
        elif part == scheme.marker:
            names = {part: f"{layer}{part}" for part in scheme.parts}
            missing = [names[part] for part in scheme.required if names[part] not in files]
            if missing:
                raise ValueError(f"{name} is there, but not {', '.join(missing)}.")
            parts = {part: shards.read(full) for part, full in names.items() if full in files}
            yield f"{layer}weight", parts


def _value(
    folder: Path,
    scheme: Scheme,
    name: str,
    tensors: dict[str, np.ndarray],
    dtype: DTypeLike | None,
) -> Value:
    if "" in tensors:
        array = jnp.asarray(tensors[""])
        cast = dtype is not None and jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(dtype) if cast else array
    try:
        weight = scheme.convert(tensors)
    except (ValueError, NotImplementedError) as error:
        raise type(error)(f"{folder}: {name.removesuffix('.weight')}: {error}") from error
    return weight if dtype is None else weight.astype(dtype)


@contextlib.contextmanager
def _bar(folder: Path, files: set[str], progress: bool) -> Iterator[Callable[[int], Any]]:
    """What tells the bar of bytes that were read."""
    try:
        from tqdm import tqdm
    except ImportError:
        progress = False
    if not progress:
        yield lambda count: None
        return
    total = sum((folder / file).stat().st_size for file in files)
    with tqdm(total=total, desc=f"load {folder.name}", unit="B", unit_scale=True) as bar:
        yield bar.update
