"""The neural audio codec: samples to codes and codes to samples, whole or piece by piece.

In: a bundle with the graphs `codec_encoder` and `codec_decoder` and the settings `codec`. Out: `Codec`. Everything is
causal with a bounded reach, so whole and streamed are one path: a whole signal is a stream that is fed at once. Does
not read files, resample or set loudness (see `runtime.voices`) and knows no language model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from voxedge.engines.backend import Engine
from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, InputError
from voxedge.engines.loader import BackendName, GraphLoader, LoadOptions
from voxedge.engines.records import from_bundle
from voxedge.runtime.codec_settings import DECODER, ENCODER, CodecSettings
from voxedge.runtime.codec_streams import Codes, DecodeStream, EncodeStream, Samples, check_codes

__all__ = ["Codec", "Codes", "DecodeStream", "Samples"]


class Codec:
    """A loaded codec.

    Example:
        >>> codec = Codec.from_pretrained("moss-codec")  # doctest: +SKIP
        >>> codes = codec.encode(samples)  # doctest: +SKIP
        >>> codec.decode(codes[:8]).shape  # the first 8 codebooks  # doctest: +SKIP
    """

    def __init__(self, settings: CodecSettings, load: Callable[[str], Engine]) -> None:
        """Use `from_pretrained` or `of`; graphs are loaded when they are first needed.

        Args:
            settings: What the bundle says.
            load: Gives the engine of a graph by its name.
        """
        self.settings = settings
        self._load = load

    @classmethod
    def of(cls, bundle: Bundle, loader: GraphLoader) -> Codec:
        """The codec of a bundle: one of a codec alone, or of a whole system that has one.

        Raises:
            BundleError: The bundle has no codec, or its settings are damaged.
        """
        given = bundle.manifest.settings.get("codec")
        if given is None or not loader.has(DECODER):
            raise BundleError(
                f"{bundle.root}: expected a bundle with a codec, found {bundle.manifest.system!r} without one; "
                "export the codec's checkpoint with `voxedge export` and name its bundle"
            )
        settings = from_bundle(CodecSettings, given, "voxedge.json: settings.codec")
        loader.require(DECODER)
        return cls(settings, loader.load)

    @classmethod
    def from_pretrained(cls, path: str | Path, *, backend: BackendName = "auto", threads: int | None = None) -> Codec:
        """Open the codec of a bundle; its graphs are loaded when they are first needed.

        Args:
            path: The bundle's folder.
            backend: What runs the graphs. Only `auto` may fall back to the CPU.
            threads: CPU threads; None for the physical cores.

        Raises:
            MissingResourceError: There is no such bundle.
            BundleError: The bundle is damaged, or has no codec.
            BackendUnavailableError: The backend is not there.
        """
        bundle = Bundle.open(path)
        return cls.of(bundle, GraphLoader(bundle, LoadOptions(backend, threads=threads)))

    @property
    def sample_rate(self) -> int:
        """In Hz."""
        return self.settings.sample_rate

    @property
    def channels(self) -> int:
        """Of the audio."""
        return self.settings.channels

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.settings.sample_rate / self.settings.hop

    @property
    def codebooks(self) -> int:
        """Most codebooks."""
        return self.settings.codebooks

    def encode(self, samples: Samples, codebooks: int | None = None) -> Codes:
        """Describe a recording.

        Args:
            samples: [T, channels], or [T] where there is one channel, at `sample_rate`.
            codebooks: How many codes a frame gets; None for all.

        Returns:
            [codebooks, T // hop]; a last frame that is not whole is dropped.

        Raises:
            InputError: Not one whole frame, too many codebooks, or samples that are no numbers.
        """
        return self.encode_batch([samples], codebooks)[0]

    def encode_batch(self, batch: Sequence[Samples], codebooks: int | None = None) -> list[Codes]:
        """Describe several recordings of any lengths in one pass; see `encode`."""
        count = self._count(codebooks)
        frames = [self._frames(samples) for samples in batch]  # [T, hop] each, zeros behind the end
        lengths = np.array([len(samples) // self.settings.hop for samples in batch])
        if not len(lengths) or lengths.min() < 1:
            raise InputError(
                f"expected at least {self.settings.hop} samples ({1.0 / self.frame_rate:g} s), "
                f"found {min((len(samples) for samples in batch), default=0)}"
            )
        stream = EncodeStream(self.engine(ENCODER), self.settings, len(batch))
        longest = int(lengths.max())
        padded = np.zeros((len(batch), longest, frames[0].shape[-1]), np.float32)
        for row, content in zip(padded, frames, strict=True):
            row[: len(content)] = content[:longest]
        codes = stream.feed(padded, lengths)
        return [codes[:count, row, :length].copy() for row, length in enumerate(lengths)]

    def decode(self, codes: Codes) -> Samples:
        """Make the samples that codes describe.

        Args:
            codes: [k, T]; the first k codebooks, T frames.

        Returns:
            [T * hop, channels], full scale 1, not clipped.

        Raises:
            InputError: No codebook or too many, or codes that do not exist.
        """
        return self.decode_batch([codes])[0]

    def decode_batch(self, batch: Sequence[Codes]) -> list[Samples]:
        """Decode several sequences of any lengths in one pass; see `decode`."""
        checked = [self.check(codes) for codes in batch]
        longest = max((codes.shape[1] for codes in checked), default=0)
        padded = np.full((self.codebooks, len(batch), longest), self.settings.codebook_size, np.int32)
        for row, codes in enumerate(checked):
            padded[: len(codes), row, : codes.shape[1]] = codes
        audio = self._stream(len(batch)).feed_batch(padded)  # [B, T * hop, channels]
        return [samples[: codes.shape[1] * self.settings.hop] for samples, codes in zip(audio, checked, strict=True)]

    def stream(self) -> DecodeStream:
        """Start to decode codes that come piece by piece."""
        return self._stream(1)

    def engine(self, name: str) -> Engine:
        """One of the two graphs.

        Raises:
            BundleError: The bundle has no such graph.
        """
        return self._load(name)

    def check(self, codes: npt.ArrayLike) -> Codes:
        """Codes as [k, T] INT32, or an error; see `check_codes`."""
        return check_codes(codes, self.settings)

    def _stream(self, batch: int) -> DecodeStream:
        return DecodeStream(self.engine(DECODER), self.settings, batch)

    def _count(self, codebooks: int | None) -> int:
        if codebooks is not None and not 1 <= codebooks <= self.codebooks:
            raise InputError(f"expected 1 .. {self.codebooks} codebooks, found {codebooks}; this codec has no more")
        return codebooks or self.codebooks

    def _frames(self, samples: Samples) -> Samples:
        """Samples [T, channels] as [frames, hop * channels], the last one filled up with zeros."""
        given = np.asarray(samples, np.float32)
        shaped = given[:, None] if given.ndim == 1 else given  # [T, channels]
        if shaped.ndim != 2 or shaped.shape[1] != self.channels:
            raise InputError(
                f"expected samples [T, {self.channels}], found {list(given.shape)}; mix the channels first"
            )
        if not np.isfinite(shaped).all():
            raise InputError("expected finite samples, found NaN or infinity; save the recording as 16-bit WAV")
        whole = -(-len(shaped) // self.settings.hop) * self.settings.hop
        padded = np.zeros((whole, self.channels), np.float32)
        padded[: len(shaped)] = shaped
        return padded.reshape(-1, self.settings.hop * self.channels)
