"""An audio codec while it goes on: frames in, frames out, and a state that never grows.

In: codes or samples of the next frames. Out: samples or codes of them, equal to those of the whole signal but for the
rounding of other matrix sizes. Knows the graphs' inputs and outputs; does not load graphs or read files.
"""

from __future__ import annotations

from types import TracebackType

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Engine
from voxedge.engines.errors import InputError
from voxedge.runtime.codec_settings import CodecSettings
from voxedge.runtime.sliding import SlidingState

Codes = npt.NDArray[np.int32]
"""[codebooks, T]; row q holds the indices into codebook q."""
Samples = npt.NDArray[np.float32]


def check_codes(codes: npt.ArrayLike, settings: CodecSettings) -> Codes:
    """Codes as [k, T] INT32, or an error.

    Raises:
        InputError: No codebook or too many, or codes that do not exist.
    """
    found = np.asarray(codes)
    size = settings.codebook_size
    if found.ndim != 2 or found.dtype.kind not in "iu" or not 1 <= len(found) <= settings.codebooks:
        raise InputError(
            f"expected codes [k, frames] of 1 .. {settings.codebooks} codebooks, found {found.dtype} "
            f"{list(found.shape)}; this codec cannot read them"
        )
    if found.size and not (int(found.min()) >= 0 and int(found.max()) < size):
        raise InputError(
            f"expected codes of 0 .. {size - 1}, found {int(found.min())} .. {int(found.max())}; "
            "they belong to another codec, or padding was not removed"
        )
    return np.ascontiguousarray(found, np.int32)


class DecodeStream:
    """Decodes frames as they come; equal to decoding them at once but for the rounding of other matrix sizes.

    Example:
        >>> with codec.stream() as stream:  # doctest: +SKIP
        ...     for codes in pieces:
        ...         play(stream.feed(codes))
    """

    def __init__(self, engine: Engine, settings: CodecSettings, batch: int = 1) -> None:
        """Use `Codec.stream`.

        Args:
            engine: The codec's decoder.
            settings: What the bundle says.
            batch: Streams that go in step.
        """
        self._settings = settings
        self._state: SlidingState | None = SlidingState(engine, settings.context, batch)

    def __enter__(self) -> DecodeStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def state(self) -> SlidingState:
        """What the stream remembers.

        Raises:
            InputError: The stream was closed.
        """
        if self._state is None:
            raise InputError("expected an open stream, this one was closed; start another with Codec.stream")
        return self._state

    def feed(self, codes: Codes) -> Samples:
        """Decode the next frames.

        Args:
            codes: [k, n] with n >= 0; k may change from call to call.

        Returns:
            [n * hop, channels], which follow those of the last call.

        Raises:
            InputError: The codes cannot be decoded, or the stream was closed.
        """
        checked = check_codes(codes, self._settings)
        padded = np.full((self._settings.codebooks, 1, checked.shape[1]), self._settings.codebook_size, np.int32)
        padded[: len(checked), 0] = checked
        samples: Samples = self.feed_batch(padded)[0]
        return samples

    def feed_batch(self, codes: Codes) -> Samples:
        """The same for streams in step.

        Args:
            codes: [codebooks, B, n] of all codebooks; `codebook_size` stands for none.

        Returns:
            [B, n * hop, channels].
        """
        settings, frames = self._settings, codes.shape[2]
        audio = np.zeros((codes.shape[1], frames, settings.hop * settings.channels), np.float32)
        for start in range(0, frames, self.state.max_frames):
            part = np.ascontiguousarray(codes[:, :, start : start + self.state.max_frames])
            made = np.empty((part.shape[1], part.shape[2], audio.shape[2]), np.float32)
            self.state.run(part.shape[2], {"codes": part, "audio": made})
            audio[:, start : start + part.shape[2]] = made
        return audio.reshape(len(audio), frames * settings.hop, settings.channels)

    def close(self) -> None:
        """Give the state's memory back."""
        self._state = None


class EncodeStream:
    """Encodes frames of samples as they come."""

    def __init__(self, engine: Engine, settings: CodecSettings, batch: int = 1) -> None:
        self._codebooks = settings.codebooks
        self._state = SlidingState(engine, settings.context, batch)

    def feed(self, frames: Samples, lengths: npt.NDArray[np.int64]) -> Codes:
        """Encode the next frames.

        Args:
            frames: [B, n, hop * channels].
            lengths: [B] frames of each row that are whole, from the start of this call; codes of others mean nothing.

        Returns:
            [codebooks, B, n].
        """
        batch, count, _ = frames.shape
        codes = np.zeros((self._codebooks, batch, count), np.int32)
        for start in range(0, count, self._state.max_frames):
            part = np.ascontiguousarray(frames[:, start : start + self._state.max_frames])
            whole = np.clip(lengths - start, 0, part.shape[1]).astype(np.int32)
            made = np.empty((len(codes), batch, part.shape[1]), np.int32)
            self._state.run(part.shape[1], {"audio": part, "lengths": whole, "codes": made})
            codes[:, :, start : start + part.shape[1]] = made
        return codes
