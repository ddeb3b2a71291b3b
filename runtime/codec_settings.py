"""Settings of an audio codec: what export writes into a manifest and the runtime reads.

In: the `codec` part of a manifest's settings. Out: frozen records, whose every number can be worked with. Knows no
graphs and no files.
"""

from __future__ import annotations

from dataclasses import dataclass

from voxedge.engines.records import check_range

SYSTEM = "moss_codec"
ENCODER, DECODER = "codec_encoder", "codec_decoder"


@dataclass(frozen=True, slots=True)
class CodecSettings:
    """What the runtime needs beside the codec's graphs; stands under `codec` in the settings of a bundle."""

    sample_rate: int
    """In Hz."""
    hop: int
    """Samples of one frame, of each channel."""
    codebooks: int
    """Most codes of one frame; the first k of them are a coarser description."""
    codebook_size: int
    """Codes are 0 .. codebook_size - 1."""
    context: int
    """Earlier frames whose keys and values a frame needs in every layer."""
    fingerprint: str
    """SHA-256 of the codebooks: codes of one fingerprint mean the same."""
    channels: int = 1
    """Of the waveform; the graphs take them interleaved."""

    def __post_init__(self) -> None:
        least = {"sample_rate": 1, "hop": 1, "codebooks": 1, "codebook_size": 1, "context": 0, "channels": 1}
        check_range(self, "settings.codec", **least)


@dataclass(frozen=True, slots=True)
class CodecBundleSettings:
    """Settings of a bundle that is a codec and nothing else."""

    codec: CodecSettings
