"""The text tokens that a denoiser attends to: the token at each position of its keys, and which tokens are content.

Token ids are read from the calls of the text encoders. A denoiser's text sequence may be one encoder's positions
(Stable Diffusion, PixArt), two encoders' features concatenated at the same positions (SDXL), the second
encoder's positions alone (Flux), or one encoder's sequence after another's (SD3: CLIP, then T5).
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pytest_diffusion.verdicts.errors import ModelError

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_NO_ENCODER = ""
_SPECIAL, _PADDING = "special", "padding"


@dataclass(frozen=True)
class TextTokens:
    """Tokens of each prompt, in the order of the denoiser's keys."""

    tokens: list[list[str]]
    marks: list[list[str]]
    """"content", "special" or "padding", one for each token."""
    sources: list[str]
    """Which tokenizer each position comes from, as "tokenizer_2"; empty for positions that no encoder fills."""

    @property
    def content(self) -> torch.Tensor:
        """True for tokens that are neither special nor padding, bool (prompts, tokens)."""
        return torch.tensor([[mark == "content" for mark in row] for row in self.marks])

    def repeated(self, count: int) -> TextTokens:
        """Each prompt `count` times in a row, as `num_images_per_prompt` lays out a batch."""

        def repeat(rows: list[list[str]]) -> list[list[str]]:
            return [row for row in rows for _ in range(count)]

        return TextTokens(repeat(self.tokens), repeat(self.marks), self.sources)


@dataclass
class TokenListener:
    """Records the token ids with which a pipeline calls its text encoders."""

    pipeline: Any
    ids: dict[str, torch.Tensor] = field(default_factory=dict)
    calls: int = 0
    """Largest number of calls of one encoder: pipelines encode the prompt first and a negative prompt second."""

    def listen(self) -> list[Any]:
        """Register the hooks; returns their handles."""
        return [
            encoder.register_forward_pre_hook(self._hook(name), with_kwargs=True)
            for name in ENCODERS
            if (encoder := getattr(self.pipeline, name, None)) is not None
        ]

    def _hook(self, name: str) -> Any:
        seen = 0

        def hear(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal seen
            ids = kwargs.get("input_ids", args[0] if args else None)
            if not isinstance(ids, torch.Tensor):
                return
            seen += 1
            self.calls = max(self.calls, seen)
            self.ids.setdefault(name, ids.cpu())

        return hear

    def aligned(self, length: int) -> TextTokens:
        """The tokens of a key sequence of `length` positions. Raises ModelError where they cannot be determined."""
        if not self.ids:
            raise ModelError("record_attention recorded no token ids: call the pipeline with prompts, not with prompt_embeds.")
        layout = self._layout(length)
        if layout is None:
            seen = ", ".join(f"{name} {ids.shape[1]}" for name, ids in self.ids.items())
            raise ModelError(f"the denoiser's {length} text positions do not match the encoders' token counts ({seen}).")
        parts = [self._part(names, size) for names, size in layout]
        rows = range(len(next(iter(self.ids.values()))))
        return TextTokens(
            [[token for part in parts for token in part.tokens[row]] for row in rows],
            [[mark for part in parts for mark in part.marks[row]] for row in rows],
            [source for part in parts for source in part.sources],
        )

    def _layout(self, length: int) -> list[tuple[list[str], int]] | None:
        """The sequence as parts: for each, the encoders that share its positions and the number of positions; None where none fits."""
        sizes = {name: ids.shape[1] for name, ids in self.ids.items()}
        if hasattr(self.pipeline, "text_encoder_3"):
            clips = [name for name in ENCODERS[:2] if name in sizes]
            first = sizes[clips[0]] if clips else 0
            last = [ENCODERS[2]] if ENCODERS[2] in sizes else [_NO_ENCODER]
            if last == [_NO_ENCODER] or sizes[ENCODERS[2]] == length - first:
                return [(clips, first), (last, length - first)]
            return None
        fitting = [name for name in ENCODERS if sizes.get(name) == length]
        if fitting:
            return [(fitting, length)]
        return [([name], size) for name, size in sizes.items()] if sum(sizes.values()) == length else None

    def _part(self, names: Sequence[str], size: int) -> TextTokens:
        rows = len(next(iter(self.ids.values())))
        if names[0] == _NO_ENCODER:
            return TextTokens([[""] * size for _ in range(rows)], [[_PADDING] * size for _ in range(rows)], [""] * size)
        tokenizers = [name.replace("text_encoder", "tokenizer") for name in names]
        read = [_read(getattr(self.pipeline, tokenizer), self.ids[name]) for tokenizer, name in zip(tokenizers, names, strict=True)]
        tokens, marks = read[0]
        for others, _ in read[1:]:
            # Two encoders may have different words at the same position: both are shown.
            tokens = [
                [
                    one if one == other or mark != "content" else f"{one}|{other}"
                    for one, other, mark in zip(row, other_row, row_marks, strict=True)
                ]
                for row, other_row, row_marks in zip(tokens, others, marks, strict=True)
            ]
        return TextTokens(tokens, marks, [tokenizers[0]] * size)


def word_places(tokens: Sequence[str], word: str) -> list[int]:
    """Indices of the sub-word tokens (CLIP or T5) that spell the first occurrence of `word`.

    Raises ValueError when the word is not there or is truncated.
    """
    for places in words_of(tokens):
        spelled = "".join(plain(tokens[place]) for place in places)
        # T5 may attach a comma to the word.
        if spelled.strip(string.punctuation).casefold() == word.casefold():
            return places
    raise ValueError(f"The word {word!r} is not among the tokens {list(tokens)}.")


def words_of(tokens: Sequence[str]) -> list[list[int]]:
    """Indices of each word's tokens. CLIP marks a word's end (`</w>`), SentencePiece (T5) its beginning (`▁`)."""
    words: list[list[int]] = []
    joined = False
    for place, token in enumerate(tokens):
        if token.startswith(("<|", "</s>", "<pad>", "<s>", "<unk>")) or not token:
            joined = False
        elif token.endswith("</w>"):
            if joined:
                words[-1].append(place)
            else:
                words.append([place])
            joined = False
        elif token.startswith("▁") or not joined:
            words.append([place])
            joined = True
        else:
            words[-1].append(place)
    return [places for places in words if not _is_cut(tokens, places)]


def plain(token: str) -> str:
    """A token's letters, without the marks of its tokenizer."""
    return token.removesuffix("</w>").removeprefix("▁")


def _is_cut(tokens: Sequence[str], places: list[int]) -> bool:
    """Whether CLIP's context ended within the word."""
    uses_ends = any(token.endswith("</w>") for token in tokens)
    return uses_ends and not tokens[places[-1]].endswith("</w>") and not tokens[places[0]].startswith("▁")


def _read(tokenizer: Any, ids: torch.Tensor) -> tuple[list[list[str]], list[list[str]]]:
    """Token strings and marks of ids (prompts, tokens). Tokens after the end token are padding, whatever their ids."""
    special = set(tokenizer.all_special_ids)
    tokens, marks = [], []
    for row in ids.tolist():
        end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
        tokens.append(tokenizer.convert_ids_to_tokens(row))
        marks.append([_PADDING if place > end else _SPECIAL if value in special else "content" for place, value in enumerate(row)])
    return tokens, marks
