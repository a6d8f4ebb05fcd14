"""Text to token ids and back, by whatever a folder has."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Tokens(Protocol):
    """A tokenizer."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TokenizerFile:
    """A folder's ``tokenizer.json``. Special tokens may be spelled out in a text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))


class Bytes:
    """Every byte is a token."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", "replace")


class Numbers:
    """Token ids as they are: "1 529 7"."""

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))


def load_tokens(folder: Path, vocab_size: int) -> Tokens:
    """``tokenizer.json``, with the package tokenizers; else bytes, if there are 256; else ids."""
    file = folder / "tokenizer.json"
    if file.exists():
        try:
            from tokenizers import Tokenizer
        except ImportError:
            print("tokenizer.json needs a package: pip install tokenizers")
        else:
            return TokenizerFile(Tokenizer.from_file(str(file)))
    return Bytes() if vocab_size == 256 else Numbers()
