"""Random numbers that any machine can draw again: a seed and a purpose in, uniform and normal values out.

In: a seed and the name of what the numbers are for. Out: float32 normals and float uniforms, in order or by position.
Does not know: networks, latents, sampling rules; keeps no global state.

Every value is a function of (seed, purpose, position) alone, by the Philox4x64-10 counter-based generator (Salmon et
al. 2011), so a window of a long noise signal can be drawn without the rest. Normals are made here rather than by
numpy's `Generator`: numpy fixes the bits of its bit generators but reserves the right to change the streams of its
distributions (NEP 19), and `np.log` or `np.cos` may round differently from one processor to the next. Here a normal
needs additions, multiplications, divisions and square roots only, which IEEE 754 rounds one way everywhere.
"""

from __future__ import annotations

import hashlib
import math
import secrets

import numpy as np
import numpy.typing as npt

from voxedge.engines.errors import InputError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Raw = npt.NDArray[np.uint64]

SEED_LIMIT = 1 << 64
"""Seeds are below this."""

_WORDS_PER_BLOCK = 4  # Philox4x64 makes four words from each counter value
_CACHE_WORDS = 256
_COUNTER_LIMIT = 1 << 64

# Wichura 1988, algorithm AS 241 (PPND16): numerators and denominators, highest power first, of the central part and
# the two tails; relative error about 1e-16.
_CENTRE = (
    (2509.0809287301226727, 33430.575583588128105, 67265.770927008700853, 45921.953931549871457,
     13731.693765509461125, 1971.5909503065514427, 133.14166789178437745, 3.387132872796366608),
    (5226.495278852545925, 28729.085735721942674, 39307.89580009271061, 21213.794301586595867,
     5394.1960214247511077, 687.1870074920579083, 42.313330701600911252, 1.0),
)  # fmt: skip
_TAIL = (
    (7.7454501427834140764e-4, 0.0227238449892691845833, 0.24178072517745061177, 1.27045825245236838258,
     3.64784832476320460504, 5.7694972214606914055, 4.6303378461565452959, 1.42343711074968357734),
    (1.05075007164441684324e-9, 5.475938084995344946e-4, 0.0151986665636164571966, 0.14810397642748007459,
     0.68976733498510000455, 1.6763848301838038494, 2.05319162663775882187, 1.0),
)  # fmt: skip
_FAR_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 0.0012426609473880784386, 0.026532189526576123093,
     0.29656057182850489123, 1.7848265399172913358, 5.4637849111641143699, 6.6579046435011037772),
    (2.04426310338993978564e-15, 1.4215117583164458887e-7, 1.8463183175100546818e-5, 7.868691311456132591e-4,
     0.0148753612908506148525, 0.13692988092273580531, 0.59983220655588793769, 1.0),
)  # fmt: skip
_LN2 = 0.6931471805599453


def fresh_seed() -> int:
    """Seed below 2**32 from the operating system, for a user who gave none; record it, to speak the same again."""
    return secrets.randbits(32)


class NoiseStream:
    """One stream of random numbers, named by a seed and a purpose.

    Streams of different purposes are independent, so adding a draw to one never moves another.

    Example:
        >>> stream = NoiseStream(seed=7, purpose="latents")
        >>> whole = stream.normal_frames(0, 100, channels=32)
        >>> bool((whole[:, 40:60] == stream.normal_frames(40, 60, channels=32)).all())
        True
    """

    def __init__(self, seed: int, purpose: str) -> None:
        """Start at position 0.

        Args:
            seed: 0 <= seed < 2**64.
            purpose: What the numbers are for, such as `latents` or `sampling`.

        Raises:
            InputError: The seed is out of range.
        """
        if not 0 <= seed < SEED_LIMIT:
            raise InputError(f"expected a seed of 0 .. 2**64 - 1, got {seed}; for example 42")
        digest = hashlib.sha256(purpose.encode()).digest()
        self.seed = seed
        self.purpose = purpose
        self.position = 0
        self._key = (seed, int.from_bytes(digest[:8], "little"))
        self._cache: list[float] = []
        self._cache_start = 0

    def at(self, counter: int) -> NoiseStream:
        """The same stream from position `counter` on, counted in numbers drawn; this one stays where it is."""
        other = NoiseStream(self.seed, self.purpose)
        other.position = counter
        return other

    def uniform(self) -> float:
        """Next value, 0 <= value < 1, with 53 random bits; moves on by one position."""
        index = self.position - self._cache_start
        if not 0 <= index < len(self._cache):
            self._cache_start, index = self.position, 0
            raw = self._raw(self.position, _CACHE_WORDS)
            self._cache = ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
        self.position += 1
        return self._cache[index]

    def normal(self, shape: tuple[int, ...]) -> Float32:
        """Next values, mean 0 and variance 1, in C order; moves on by as many positions as values."""
        count = math.prod(shape)
        values = _normal(self._raw(self.position, count))
        self.position += count
        return values.reshape(shape)

    def normal_frames(self, start: int, stop: int, channels: int) -> Float32:
        """Columns `[start, stop)` of an endless noise signal; any window gives the values the whole has there.

        Addresses frame f, channel c at position f * channels + c, whatever was drawn before, and does not move.

        Returns:
            Array [channels, stop - start].
        """
        if not 0 <= start <= stop:
            raise InputError(f"expected frames 0 <= start <= stop, got {start} and {stop}")
        values = _normal(self._raw(start * channels, (stop - start) * channels))
        return np.ascontiguousarray(values.reshape(stop - start, channels).T)  # [channels, stop - start]

    def _raw(self, position: int, count: int) -> Raw:
        """Words `position .. position + count` of the Philox sequence."""
        block, skip = divmod(position, _WORDS_PER_BLOCK)
        if not 0 <= position <= position + count < _COUNTER_LIMIT:
            raise InputError(f"expected positions of 0 .. 2**64 - 1, got {position} and {count} more")
        counter = np.array([block, 0, 0, 0], dtype=np.uint64)
        generator = np.random.Philox(counter=counter, key=np.array(self._key, dtype=np.uint64))
        words: Raw = generator.random_raw(skip + count)
        return words[skip:]


def _normal(raw: Raw) -> Float32:
    """Inverse normal distribution function of the upper 52 bits of each word."""
    # The middle of one of 2**52 cells: exact in float64, never 0 or 1, symmetric about one half.
    probability = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    centred = probability - 0.5
    square = 0.180625 - centred * centred
    values = centred * _ratio(_CENTRE, square)
    outer = np.flatnonzero(np.abs(centred) > 0.425)
    values[outer] = np.copysign(_tail(np.minimum(probability[outer], 1.0 - probability[outer])), centred[outer])
    rounded: Float32 = values.astype(np.float32)
    return rounded


def _tail(probability: Float64) -> Float64:
    """Distance from 0 at which the normal distribution leaves `probability` outside; at most 0.075."""
    root = np.sqrt(-_log(probability))
    distance: Float64 = np.where(root <= 5.0, _ratio(_TAIL, root - 1.6), _ratio(_FAR_TAIL, root - 5.0))
    return distance


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], x: Float64) -> Float64:
    numerator, denominator = (np.full_like(x, line[0]) for line in coefficients)
    for above, below in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        numerator = numerator * x + above
        denominator = denominator * x + below
    return numerator / denominator


def _log(x: Float64) -> Float64:
    """Natural logarithm by exactly rounded operations only: 2 artanh((m - 1) / (m + 1)) + e ln 2 for x = m 2**e."""
    mantissa, exponent = np.frexp(x)  # 0.5 <= mantissa < 1
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2.0, mantissa)
    power = exponent.astype(np.float64) - low
    s = (mantissa - 1.0) / (mantissa + 1.0)  # |s| <= 0.172, so 11 terms leave less than 1e-17
    square = s * s
    series = np.full_like(s, 1.0 / 21.0)
    for odd in range(19, 0, -2):
        series = series * square + 1.0 / odd
    return 2.0 * s * series + power * _LN2
