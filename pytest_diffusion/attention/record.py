"""Data of a recorded run: attention maps and entropies by layer, and the tokens of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from pytest_diffusion.attention.tokens import TextTokens, plain, word_places, words_of


@dataclass
class LayerRecord:
    """Record of one layer. Maps are means over heads and over the early or late half of the steps, float32 (B, tokens, h, w)."""

    is_cross: bool
    """Whether the image attends to text in this layer, by cross-attention or in joint attention."""
    is_joint: bool = False
    """Whether it is joint attention. Then only the image's attention to text is kept, renormalised over the text tokens."""
    entropy: list[torch.Tensor] = field(default_factory=list)
    early: torch.Tensor | None = None
    late: torch.Tensor | None = None
    early_steps: int = 0
    late_steps: int = 0
    row_error: float = 0.0
    """Largest deviation from 1 of a row sum in the kept maps; set when the recording has ended."""
    grid: tuple[int, int] | None = None
    steps: dict[int, torch.Tensor] = field(default_factory=dict)
    """Maps of the requested steps, by step index."""

    def entropies(self) -> torch.Tensor:
        """Normalised token entropy (steps, B)."""
        return torch.stack(self.entropy).cpu()

    def settle(self) -> None:
        """Move the kept values to the CPU and reshape them to maps; done once at the end, because it is slow at each step."""
        self.early, self.late = (None if maps is None else self._as_maps(maps.cpu()) for maps in (self.early, self.late))
        self.steps = {step: self._as_maps(maps) for step, maps in self.steps.items()}
        self.entropy = [values.cpu() for values in self.entropy]
        kept = [maps for maps in (self.early, self.late, *self.steps.values()) if maps is not None]
        # amax keeps nan, which max() would lose.
        errors = [(maps.sum(1) - 1).abs().amax() for maps in kept]
        self.row_error = float(torch.stack(errors).amax()) if errors else 0.0

    def _as_maps(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of probabilities (B, pixels, tokens) as maps (B, tokens, h, w)."""
        assert self.grid is not None
        maps: torch.Tensor = rows.transpose(1, 2).unflatten(2, self.grid).contiguous()
        return maps


@dataclass
class AttentionRecord:
    """A recorded run: layers by name, and the tokens of each image's prompt. B is the number of images."""

    layers: dict[str, LayerRecord] = field(default_factory=dict)
    timesteps: list[float] = field(default_factory=list)
    """The scheduler's timestep of each call of the denoiser."""
    text: TextTokens | None = None
    predictions: int = 1
    """How many predictions each call of the denoiser stacked in its batch: 2 with classifier-free guidance."""

    @property
    def tokens(self) -> list[list[str]]:
        """Tokens of each image's prompt, in the order of the maps' second axis."""
        return self.text.tokens if self.text is not None else []

    @property
    def content(self) -> torch.Tensor | None:
        """True for tokens that are neither special nor padding, bool (B, tokens); None before anything was recorded."""
        return self.text.content if self.text is not None else None

    def token_index(self, row: int, word: str) -> int:
        """Index of the last sub-word token of `word` in the prompt of image `row`. Raises ValueError when the word is not there."""
        return word_places(self.tokens[row], word)[-1]

    def words(self, row: int) -> list[tuple[str, list[int]]]:
        """Words of the prompt of image `row`, each with the indices of its sub-word tokens."""
        assert self.text is not None
        tokens, marks = self.text.tokens[row], self.text.marks[row]
        kept = [places for places in words_of(tokens) if all(marks[place] == "content" for place in places)]
        return [("".join(plain(tokens[place]) for place in places), places) for places in kept]

    def maps(self, row: int = 0, *, layers: Sequence[str] | None = None, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Maps of image `row` at the requested steps, float32 (steps, layers, tokens, h, w).

        Layers are resized bilinearly to `size`, by default the largest among them. Raises ValueError where
        no steps were requested.
        """
        chosen = list(layers) if layers is not None else list(self.layers)
        if not chosen or not self.layers[chosen[0]].steps:
            raise ValueError("No maps of single steps were kept: name them in record_attention(pipeline, steps=[...]).")
        kept = [[maps[row] for maps in self.layers[name].steps.values()] for name in chosen]
        to = size or max((maps[0].shape[-2:] for maps in kept), key=lambda shape: shape[0] * shape[1])
        resized = [torch.nn.functional.interpolate(torch.stack(maps), tuple(to), mode="bilinear", align_corners=False) for maps in kept]
        return torch.stack(resized, 1)
