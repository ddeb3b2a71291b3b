"""Latents to samples piece by piece, exactly as if decoded at once; and latents that follow a coarser grid.

In: latents that arrive in pushes of any size, a decoder of convolutions. Out: the samples of the whole, as early as
the decoder's reach allows. Does not know: what decodes, what a latent means, sample rates.

The decoder is an Oobleck stack (Evans et al. 2024): a convolution over 7 latents, then per stride s one transposed
convolution (kernel 2s, padding ceil(s / 2)) and three residual units (kernel 7, dilation 1, 3, 9), then a convolution
over 7 samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import ConfigError

Array = npt.NDArray[np.float32]
Decode = Callable[[Array], Array]
"""Latents [..., channels, N] in, samples [..., audio channels, decoded_length(N)] out."""

_RESIDUAL_REACH = 3 * (1 + 3 + 9)
_CONVOLUTION_REACH = 3


def receptive_margin(strides: Sequence[int]) -> tuple[int, int]:
    """How many latents to the left and right of a latent its samples depend on.

    Interval arithmetic from the samples back to the latents; an upper bound that is reached within one latent.

    Args:
        strides: Of the decoder's blocks, nearest to the samples first (the order of the encoder's configuration).

    Example:
        >>> receptive_margin([2, 2, 4, 6, 10])
        (9, 9)
    """
    first, last = -_CONVOLUTION_REACH, _hop(strides) - 1 + _CONVOLUTION_REACH
    for stride in strides:
        padding = math.ceil(stride / 2)
        first, last = first - _RESIDUAL_REACH, last + _RESIDUAL_REACH
        # Output o of a transposed convolution reads inputs i with i s - p <= o <= i s - p + 2 s - 1.
        first, last = math.ceil((first + padding - 2 * stride + 1) / stride), (last + padding) // stride
    return _CONVOLUTION_REACH - first, last + _CONVOLUTION_REACH


def decoded_length(latents: int, strides: Sequence[int]) -> int:
    """Samples that a count of latents becomes; each odd stride loses one sample of its output.

    Example:
        >>> decoded_length(7, [2, 2, 4, 6, 10]), decoded_length(7, [2, 3, 4, 5, 8])
        (6720, 6694)
    """
    if latents == 0:
        return 0
    length = latents
    for stride in reversed(strides):
        length = length * stride - stride % 2
    return length


def nearest_indices(source_length: int, target_length: int) -> npt.NDArray[np.int64]:
    """Source index of each target position, floor(i * source / target), as nearest interpolation takes it.

    Example:
        >>> nearest_indices(2, 5)
        array([0, 0, 0, 1, 1])
    """
    if source_length < 1 or target_length < 0:
        raise ConfigError(
            f"expected a source of 1 or more and a target of 0 or more, got {source_length}, {target_length}"
        )
    return np.arange(target_length, dtype=np.int64) * source_length // target_length


class ChunkedDecoder:
    """Decodes one utterance while its latents arrive.

    Every window is cut at the ends of the utterance and never padded: a latent of zeros is not what a convolution sees
    beyond its input's end. Which windows are decoded depends on `chunk` alone, so the samples are the same whatever the
    sizes of the pushes.
    """

    def __init__(self, decode: Decode, strides: Sequence[int], chunk: int, channels: int = 1) -> None:
        """Start an utterance.

        Args:
            decode: The decoder; called with at most `chunk` plus both margins latents.
            strides: As for `receptive_margin`.
            chunk: Latents whose samples one call yields; more wastes less on margins, fewer starts sooner.
            channels: Audio channels of the samples.
        """
        if chunk < 1:
            raise ConfigError(f"expected a chunk of 1 latent or more, got {chunk}")
        self.hop = _hop(strides)
        self.left, self.right = receptive_margin(strides)
        self._decode = decode
        self._strides = tuple(strides)
        self._chunk = chunk
        self._channels = channels
        self._kept: Array | None = None  # latents from `_start` on
        self._start = 0
        self._done = 0  # latents whose samples were given
        self._ended = False

    @property
    def largest_window(self) -> int:
        """Most latents that `decode` is ever given."""
        return self._chunk + self.left + self.right

    def push(self, latents: Array, final: bool) -> Array:
        """Take the next latents and give the samples that they complete.

        Args:
            latents: [..., channels, n], n >= 0.
            final: Whether the utterance ends with them.

        Returns:
            [..., audio channels, samples], following those of the last push; none as long as nothing is complete.
        """
        if self._ended:
            raise ConfigError("expected no latents after the final ones; make a new decoder for the next utterance")
        self._ended = final
        kept = self._kept = latents if self._kept is None else np.concatenate([self._kept, latents], axis=-1)
        end = self._start + kept.shape[-1]
        pieces = []
        while self._done < end:
            stop = min(self._done + self._chunk, end)
            if not final and self._done + self._chunk + self.right > end:
                break
            pieces.append(self._piece(kept, stop, end))
            self._done = stop
        begin = max(self._start, self._done - self.left)
        self._kept, self._start = kept[..., begin - self._start :], begin
        if pieces:
            return np.concatenate(pieces, axis=-1)
        return np.zeros((*latents.shape[:-2], self._channels, 0), dtype=np.float32)

    def _piece(self, kept: Array, stop: int, end: int) -> Array:
        """Samples of latents `_done .. stop`, of `end` known ones; to the very end where the utterance ends there."""
        low, high = max(0, self._done - self.left), min(stop + self.right, end)
        samples = self._decode(kept[..., low - self._start : high - self._start])
        expected = (self._channels, decoded_length(high - low, self._strides))
        if samples.shape[-2:] != expected:
            raise ConfigError(
                f"expected {expected[1]} samples of {high - low} latents with strides {self._strides} in {expected[0]} "
                f"audio channels, the decoder gave {samples.shape[-1]} in {samples.shape[-2]}; check both"
            )
        first = (self._done - low) * self.hop
        last = None if stop == end else (stop - low) * self.hop
        return samples[..., first:last]


def _hop(strides: Sequence[int]) -> int:
    if not strides or min(strides) < 1:
        raise ConfigError(f"expected one stride or more, each 1 or more, got {list(strides)}")
    return math.prod(strides)
