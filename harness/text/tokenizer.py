"""Tokenizers a `.pte` comes with: SentencePiece's .model, Hugging Face's tokenizer.json, llama2.c's tokenizer.bin.

Each gives ids for text, bytes for one id, and its BOS and EOS, as ExecuTorch's `pytorch/tokenizers` does for the
runner. A byte piece (`<0xE2>`) is decoded to its byte; the runner's SentencePiece tokenizer writes it out literally.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Protocol

from harness.errors import ConfigError

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
_CONFIG = "tokenizer_config.json"


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        kind: for logs.
        bos, eos: ids; None where the file names none.
        size: number of ids.
    """

    kind: str
    bos: int | None
    eos: int | None
    size: int

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """Ids of `text`, after BOS if asked and known."""
        ...

    def piece(self, previous: int, token: int) -> bytes:
        """What `token` adds to the text after `previous`, special tokens included."""
        ...

    def special(self, text: str) -> int | None:
        """The id of one special piece, as `<|im_end|>`; None where the vocabulary has no such piece."""
        ...


def load_tokenizer(path: Path, *, as_runner: bool = False) -> Tokenizer:
    """Opens a tokenizer by its contents, whatever its name.

    Args:
        path: the file.
        as_runner: with the BOS and EOS that a runner takes, which has this file alone; else the model's own, where
            a `tokenizer_config.json` beside it names them.

    Raises:
        ConfigError: no such file, or none of the three formats.
    """
    try:
        head = path.open("rb").read(64)
    except OSError as error:
        raise ConfigError(f"cannot read the tokenizer: {error.strerror}", where=str(path)) from None
    remedy = "give a SentencePiece .model, a Hugging Face tokenizer.json or a llama2.c tokenizer.bin"
    try:
        if head.lstrip().startswith(b"{"):
            return HuggingFace(path, as_runner=as_runner)
        if head.startswith(b"\n"):  # field 1 of the protobuf, a piece
            return SentencePiece(path)
        return Llama2c(path)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"no tokenizer we know: {error}", where=str(path), remedy=remedy) from None


def tokenizer_files(path: Path) -> tuple[Path, ...]:
    """The tokenizer, and what lies beside it that `load_tokenizer` reads too: only both name the same BOS."""
    config = path.with_name(_CONFIG)
    return (path, config) if path.suffix == ".json" and config.is_file() else (path,)


class SentencePiece:
    """A SentencePiece model."""

    kind = "Sentencepiece"

    def __init__(self, path: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self._model = SentencePieceProcessor(model_file=str(path))
        self.size = int(self._model.get_piece_size())
        self.bos: int | None = _known(int(self._model.bos_id()))
        self.eos: int | None = _known(int(self._model.eos_id()))

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """See `Tokenizer`."""
        ids = [int(token) for token in self._model.encode(text)]
        return [self.bos, *ids] if bos and self.bos is not None else ids

    def piece(self, previous: int, token: int) -> bytes:
        """See `Tokenizer`; a control token is a space, as in the runner."""
        if self._model.is_control(token):
            return b" "
        text = str(self._model.id_to_piece(token))
        if found := _BYTE_PIECE.fullmatch(text):
            return bytes([int(found[1], 16)])
        text = text.replace(_SPACE, " ")
        return text.removeprefix(" ").encode() if previous == self.bos else text.encode()

    def special(self, text: str) -> int | None:
        """See `Tokenizer`."""
        token = int(self._model.piece_to_id(text))
        return token if self._model.id_to_piece(token) == text else None


class HuggingFace:
    """A `tokenizer.json`; BOS and EOS from `tokenizer_config.json` beside it, else guessed as the runner does."""

    kind = "json"

    def __init__(self, path: Path, *, as_runner: bool = False) -> None:
        from tokenizers import Tokenizer as Fast  # type: ignore[import-untyped, unused-ignore]

        self._model = Fast.from_file(str(path))
        self.size = int(self._model.get_vocab_size(with_added_tokens=True))
        described = json.loads(path.read_text(encoding="utf-8"))
        self._special = {
            str(token["content"]): int(token["id"]) for token in described.get("added_tokens") or [] if token["special"]
        }
        self._added = {int(token["id"]) for token in described.get("added_tokens") or []}
        self._byte_level = "ByteLevel" in json.dumps([described.get("decoder"), described.get("pre_tokenizer")])
        self.bos, self.eos = self._ends(None if as_runner else path.with_name(_CONFIG))

    def _ends(self, config: Path | None) -> tuple[int | None, int | None]:
        if config is not None and config.is_file():
            described = json.loads(config.read_text(encoding="utf-8"))
            names = [_content(described.get(key)) for key in ("bos_token", "eos_token")]
            return self._special.get(names[0] or ""), self._special.get(names[1] or "")
        bos = _candidates(self._special, ("bos", "begin"))
        eos = _candidates(self._special, ("eos", "end"))
        first = self._special[bos[0]] if len(bos) == 1 else None
        last = self._special[eos[0]] if len(eos) == 1 else None
        return (first if first is not None else last), (last if last is not None else first)

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """See `Tokenizer`."""
        ids = [int(token) for token in self._model.encode(text, add_special_tokens=False).ids]
        return [self.bos, *ids] if bos and self.bos is not None else ids

    def piece(self, previous: int, token: int) -> bytes:  # noqa: ARG002
        """See `Tokenizer`."""
        text = self._model.id_to_token(token)
        if text is None:
            return b""
        if token in self._added:
            return str(text).encode()
        if self._byte_level:
            return b"".join(_BYTES.get(character, character.encode()) for character in text)
        if found := _BYTE_PIECE.fullmatch(text):
            return bytes([int(found[1], 16)])
        return str(text).replace(_SPACE, " ").encode()

    def special(self, text: str) -> int | None:
        """See `Tokenizer`."""
        token = self._model.token_to_id(text)
        return None if token is None else int(token)


class Llama2c:
    """ExecuTorch's export of a SentencePiece model: size, BOS, EOS, longest piece; then score and bytes of each."""

    kind = "BPE"

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        self.size, bos, eos, longest = struct.unpack_from("<iiii", data)
        if not 0 < self.size < 1 << 22 or not 0 < longest < 1 << 16:
            raise ValueError("its header makes no sense")
        self.bos: int | None = _known(bos)
        self.eos: int | None = _known(eos)
        self._pieces: list[bytes] = []
        self._scores: list[float] = []
        at = 16
        for _ in range(self.size):
            score, length = struct.unpack_from("<fi", data, at)
            if not 0 <= length <= len(data) - at - 8:
                raise ValueError("it ends early")
            self._scores.append(score)
            self._pieces.append(data[at + 8 : at + 8 + length])
            at += 8 + length
        self._ids = {piece: token for token, piece in reversed(list(enumerate(self._pieces)))}

    def encode(self, text: str, *, bos: bool) -> list[int]:
        """See `Tokenizer`. Merges the pair whose piece scores highest, leftmost first, as llama2.c does."""
        ids = [self.bos] if bos and self.bos is not None else []
        parts: list[int] = [self._ids[b" "]] if text and b" " in self._ids else []
        for character in text:
            whole = self._ids.get(character.encode())
            parts += [whole] if whole is not None else [self._byte(byte) for byte in character.encode()]
        while True:
            best: tuple[float, int, int] | None = None
            for i in range(len(parts) - 1):
                merged = self._ids.get(self._pieces[parts[i]] + self._pieces[parts[i + 1]])
                if merged is not None and (best is None or self._scores[merged] > best[0]):
                    best = self._scores[merged], i, merged
            if best is None:
                return ids + parts
            parts[best[1] : best[1] + 2] = [best[2]]

    def _byte(self, byte: int) -> int:
        return self._ids.get(b"<0x%02X>" % byte, byte + 3)

    def piece(self, previous: int, token: int) -> bytes:
        """See `Tokenizer`."""
        raw = self._pieces[token]
        if found := _BYTE_PIECE.fullmatch(raw.decode("utf-8", errors="replace")):
            return bytes([int(found[1], 16)])
        return raw.removeprefix(b" ") if previous == self.bos else raw

    def special(self, text: str) -> int | None:
        """See `Tokenizer`."""
        return self._ids.get(text.encode())


def _known(token: int) -> int | None:
    return token if token >= 0 else None


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _candidates(names: dict[str, int], words: tuple[str, ...]) -> list[str]:
    """Special pieces with one of the words in them; of several, those with `text` in them too."""
    found = [name for name in names if any(word in name for word in words)]
    return [name for name in found if "text" in name] if len(found) > 1 else found


def _byte_alphabet() -> dict[str, bytes]:
    """GPT-2's printable stand-ins for bytes, as `tokenizers`' ByteLevel uses them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): bytes([byte]) for byte in plain} | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}


_BYTES = _byte_alphabet()
