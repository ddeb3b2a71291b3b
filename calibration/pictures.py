"""Spectrograms as PNG files in memory: numpy and zlib alone.

In: samples. Out: bytes of a PNG image, or a `data:` address of it. Does not know pages or models.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np
import numpy.typing as npt

from voxedge.calibration.metrics import Array, Float64, power_spectra

TOP_HZ = 12_000.0
"""Of all pictures, or half the sample rate where that is lower."""

_ROWS, _MAX_COLUMNS = 192, 900
_FRAME_S = 0.03
_RANGE_DB = 75.0
_TINY = 1e-12

# Magma (van der Walt and Smith 2015, CC0) at nine points: brightness grows evenly, so quiet and loud can be told apart
# without colour, too.
_MAGMA = ("000004", "1c1044", "4f127b", "812581", "b5367a", "e55064", "fb8761", "fec287", "fcfdbf")


def spectrogram(samples: Array, sample_rate: int) -> Float64:
    """Power in dB over frequency and time, as it is drawn.

    Args:
        samples: [T, channels]; the first channel is drawn.
        sample_rate: In Hz.

    Returns:
        [rows, columns]; row 0 is 0 Hz.
    """
    mono = np.asarray(samples[:, :1], np.float64)
    frame = 2 ** round(np.log2(_FRAME_S * sample_rate))
    hop = max(frame // 4, -(-max(1, len(mono)) // _MAX_COLUMNS))
    power = power_spectra(mono, frame, hop)[0].T  # [bins, columns]
    bins = int(len(power) * min(1.0, 2.0 * TOP_HZ / sample_rate))
    edges = np.linspace(0, bins, min(_ROWS, bins) + 1).astype(np.int64)
    levels: Float64 = 10.0 * np.log10(np.maximum(np.maximum.reduceat(power[:bins], edges[:-1], axis=0), _TINY))
    return levels


def picture(levels: Float64, loudest_db: float) -> bytes:
    """A spectrogram as PNG, the highest frequency on top.

    Args:
        levels: [rows, columns] in dB, row 0 the lowest frequency.
        loudest_db: What is drawn brightest; 75 dB below it is black. The same for pictures that are to be compared.
    """
    shade = np.clip((levels - loudest_db) / _RANGE_DB + 1.0, 0.0, 1.0)
    return png(np.rint(shade[::-1] * 255.0).astype(np.uint8), palette())


def palette() -> npt.NDArray[np.uint8]:
    """256 colours from dark to bright: [256, 3]."""
    points = np.array([[int(colour[place : place + 2], 16) for place in (0, 2, 4)] for colour in _MAGMA], np.float64)
    places = np.linspace(0, len(points) - 1, 256)
    mixed = np.stack([np.interp(places, np.arange(len(points)), points[:, part]) for part in range(3)], axis=1)
    return np.rint(mixed).astype(np.uint8)


def png(pixels: npt.NDArray[np.uint8], colours: npt.NDArray[np.uint8]) -> bytes:
    """An indexed image (PNG specification, third edition: IHDR, PLTE, IDAT, IEND).

    Args:
        pixels: [height, width], places in the palette.
        colours: [256, 3], red, green, blue.
    """
    height, width = pixels.shape
    rows = np.pad(pixels, ((0, 0), (1, 0)))  # each row begins with its filter: 0, none
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", colours.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def data_address(content: bytes, media_type: str) -> str:
    """A `data:` address that holds the content itself."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
