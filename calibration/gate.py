"""What a bundle must keep of its reference's quality, and sentences about what it does not.

In: figures of `calibration.report`. Out: failures in words. Does not measure.

The default limits come from the small random models that the tests export and, for integers, from a trained voice as
well (see the comments). Of the random models the worst output of any graph was:

| compared | LM | diffusion network | vocoder | autoencoder's encoder |
|---|---|---|---|---|
| FP32, one flavour with the other | 115 dB | | | |
| FP16 with FP32 | 51 dB | 66 dB | 38 dB | 36 dB |
| FP16, one flavour with the other | 51 dB | | | |

Codes of the small random codec agreed at 92 % with INT8 weights and 55 % with INT4 (31 and 14 dB of state): each
codebook describes what the ones before left over, so one code that differs changes those behind it in its frame. The
limits are about half of that, at FP32 a tie in a hundred.

One rounding costs 2**-24 / sqrt(3) of a value's size at FP32 (149 dB) and 2**-11 / sqrt(3) at FP16 (71 dB); n roundings
that do not know of each other cost 10 log10(n) dB more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from voxedge.calibration.report import Check, GraphReport, SpeechDifference, SpeechReport, word_error_rate
from voxedge.engines.errors import ConfigError
from voxedge.engines.gate import Gate

# Activations are rounded, too, and one flavour may compute them in floats: between flavours lies the whole error.
# Random experts lose 15 dB more than trained ones and do not pass.
_INT8 = Gate(
    min_graph_snr_db=10.0,
    min_flavour_snr_db=10.0,
    min_token_agreement=0.85,
    max_mel_distance_db=1.5,
    max_log_spectral_distance_db=4.0,
    max_loudness_difference_lu=0.5,
    max_pitch_error_cents=20.0,
    min_voicing_agreement=0.9,
    max_silence_increase=0.05,
    max_clipped_fraction=0.01,
    max_word_error_increase=0.1,
    min_code_agreement=0.5,
)

GATES: Mapping[str, Gate] = {
    # 80 dB leaves room for 10 ** 6.9 roundings, or for an operator that loses three digits where it subtracts; a wrong
    # weight, scale or axis costs far more. Logits within 80 dB change the most likely token at exact ties only.
    "fp32": Gate(
        min_graph_snr_db=80.0,
        min_flavour_snr_db=80.0,
        min_token_agreement=0.97,
        max_mel_distance_db=0.1,
        max_log_spectral_distance_db=0.1,
        max_loudness_difference_lu=0.05,
        max_pitch_error_cents=1.0,
        min_voicing_agreement=0.99,
        max_silence_increase=0.01,
        max_clipped_fraction=0.01,
        max_word_error_increase=0.05,
        min_code_agreement=0.99,
    ),
    # 30 dB is an error of 3 % of the signal, 6 dB below the worst measured graph. Two flavours err independently, so
    # between them it may be twice the power: 3 dB less. Among near-equal logits of an untrained model 36 of 37 tokens
    # agreed. Spectra differed by 0.5 dB and loudness by 0.0002 dB; about 1 dB of spectral distance is where coded
    # speech stops being transparent (Paliwal and Atal 1993), quiet bins 80 dB below the peak add to it. 5 cents is the
    # smallest difference in pitch that trained listeners hear.
    "fp16": Gate(
        min_graph_snr_db=30.0,
        min_flavour_snr_db=27.0,
        min_token_agreement=0.9,
        max_mel_distance_db=1.0,
        max_log_spectral_distance_db=2.0,
        max_loudness_difference_lu=0.5,
        max_pitch_error_cents=5.0,
        min_voicing_agreement=0.95,
        max_silence_increase=0.05,
        max_clipped_fraction=0.01,
        max_word_error_increase=0.1,
        min_code_agreement=0.9,
    ),
    # One scale for each output channel: 34 dB for the experts, 24 dB for the diffusion network and 18 dB for the
    # vocoder's quietest call of the demo voice; 15 dB for the encoder of the random model. 12 dB is half the power
    # below the worst. Flavours share the integers and differ by what the kernel does with the activations: 36 dB or
    # more. Likeliest tokens agreed at 100 % (trained) and 93 % (random), mel spectra within 0.1 and 0.4 dB, log
    # spectra within 0.3 and 1.8 dB, loudness within 0.05 LU; the limits are about twice that. 20 cents is a fifth of a
    # semitone: what wavers by more is heard as another intonation.
    "int8-weight": Gate(
        min_graph_snr_db=12.0,
        min_flavour_snr_db=30.0,
        min_token_agreement=0.85,
        max_mel_distance_db=1.0,
        max_log_spectral_distance_db=3.0,
        max_loudness_difference_lu=0.5,
        max_pitch_error_cents=20.0,
        min_voicing_agreement=0.9,
        max_silence_increase=0.05,
        max_clipped_fraction=0.01,
        max_word_error_increase=0.1,
        min_code_agreement=0.5,
    ),
    "int8": _INT8,
    # Blocks of 64: 15 and 18 dB for the experts, 11 dB for the diffusion network of the demo voice; 81 % of the
    # likeliest tokens, 0.5 dB of mel distance, 0.4 LU. Random experts keep 2 dB and half of the tokens, and do not
    # pass.
    "int4-weight": Gate(
        min_graph_snr_db=8.0,
        min_flavour_snr_db=30.0,
        min_token_agreement=0.7,
        max_mel_distance_db=1.5,
        max_log_spectral_distance_db=4.0,
        max_loudness_difference_lu=1.0,
        max_pitch_error_cents=30.0,
        min_voicing_agreement=0.85,
        max_silence_increase=0.05,
        max_clipped_fraction=0.01,
        max_word_error_increase=0.1,
        min_code_agreement=0.3,
    ),
    # By hand it may hold anything; a search writes its own target into the manifest. With INT8 activations in the
    # vocoder mel spectra differ by 1.2 dB at any target, in quiet frames, and no more words are wrong: INT8's limits.
    "mixed": _INT8,
}
"""Defaults by precision. SNR alone judges graphs: 30 dB implies a cosine of 0.9995."""

_FEW_VOICED = 0.1  # of the reference's frames; a voice that is mostly noise has accidental periods alone
_UNINTELLIGIBLE = 0.5  # of the reference's words wrong: the recogniser does not know this voice, or nobody does


@dataclass(frozen=True, slots=True)
class _Figure:
    """How a limit is spoken of."""

    what: str
    unit: str


_FIGURES: Mapping[str, _Figure] = {
    "min_graph_snr_db": _Figure("signal to noise against the reference", "dB"),
    "min_flavour_snr_db": _Figure("signal to noise against its portable flavour", "dB"),
    "min_token_agreement": _Figure("draws with the same most likely token", "%"),
    "max_mel_distance_db": _Figure("mel distance", "dB"),
    "max_log_spectral_distance_db": _Figure("log-spectral distance", "dB"),
    "max_loudness_difference_lu": _Figure("loudness difference", "LU"),
    "max_pitch_error_cents": _Figure("median pitch error", "cents"),
    "min_voicing_agreement": _Figure("frames with the same voicing", "%"),
    "max_silence_increase": _Figure("silent frames more than in the reference's speech", "%"),
    "max_clipped_fraction": _Figure("samples beyond full scale more than in the reference's speech", "%"),
    "max_word_error_increase": _Figure("words wrong more than in the reference's speech", "%"),
    "min_code_agreement": _Figure("codes that are the same", "%"),
}


def gate_of(precisions: Iterable[str], gates: Mapping[str, Gate]) -> Gate:
    """The gate of the coarsest precision, which decides what can be asked of a whole bundle.

    Raises:
        ConfigError: There is no gate for a precision.
    """
    wanted = set(precisions)
    unknown = sorted(wanted - set(gates))
    if unknown or not wanted:
        raise ConfigError(f"expected precisions among {', '.join(gates)}, found {', '.join(unknown) or 'none'}")
    return min((gates[precision] for precision in wanted), key=lambda gate: gate.min_graph_snr_db or 0.0)


def graph_checks(graph: GraphReport, gate: Gate) -> list[Check]:
    """Signal to noise of one graph's worst output, and how many codes agree; nothing where it was not compared."""
    if graph.against is None or graph.broken:
        return []
    agreement = graph.code_agreement
    codes = [] if agreement is None else _check(gate, "min_code_agreement", _label(graph), agreement)
    return [*_snr_checks(graph, gate), *codes]


def _snr_checks(graph: GraphReport, gate: Gate) -> list[Check]:
    if graph.worst is None:
        return []
    name = "min_graph_snr_db" if graph.against == "reference" else "min_flavour_snr_db"
    limit = getattr(gate, name)
    measured = [item for item in graph.outputs if item.agreement is None]
    low = sorted((item for item in measured if item.snr_db < (limit or 0.0)), key=lambda item: item.snr_db)
    more = f"; {len(low)} of {len(graph.outputs)} outputs are below, the worst are {_some([i.name for i in low])}"
    return _check(gate, name, _label(graph), graph.worst.snr_db, more if low else "")


def graph_failures(graph: GraphReport) -> list[str]:
    """Outputs of one graph that are no numbers."""
    if not graph.broken:
        return []
    share = 100.0 * (1.0 - graph.finite)
    return [f"{_label(graph)}: expected numbers, found {share:.3g} % NaN or infinity, in {_some(graph.broken)}"]


def silence_failures(label: str, speech: SpeechReport) -> list[str]:
    """Silence where there should be speech."""
    if not speech.silent:
        return []
    return [f"{label}: expected speech, found silence: the peak of {speech.duration_s:.2f} s is {speech.peak:.2g}"]


def difference_checks(difference: SpeechDifference, gate: Gate) -> list[Check]:
    """All speech beside the reference's.

    Tokens that were drawn freely need not be equal: a draw near a border may fall to either side, and all that follow
    are then others, as good as the reference's. Clipping counts beyond the reference's own: an untrained checkpoint
    clips at any precision.
    """
    measured = {
        "min_token_agreement": difference.token_agreement,
        "max_mel_distance_db": difference.mel_distance_db,
        "max_log_spectral_distance_db": difference.log_spectral_distance_db,
        "max_loudness_difference_lu": abs(difference.loudness_difference_lu),
        "max_silence_increase": difference.silence_increase,
        "max_clipped_fraction": difference.clipping_increase,
    }
    if difference.voiced_fraction >= _FEW_VOICED:
        measured["min_voicing_agreement"] = difference.voicing_agreement
        if difference.pitch_error_cents is not None:
            measured["max_pitch_error_cents"] = difference.pitch_error_cents
    return [check for name, value in measured.items() for check in _check(gate, name, "speech", value)]


def word_checks(found: Sequence[SpeechReport], reference: Sequence[SpeechReport], gate: Gate) -> list[Check]:
    """Word errors beyond the reference's; nothing where nobody listened or the reference itself is not understood."""
    heard, expected = ([item.words for item in speech if item.words is not None] for speech in (found, reference))
    if not heard or not expected or (least := word_error_rate(expected)) > _UNINTELLIGIBLE:
        return []
    return _check(gate, "max_word_error_increase", "speech", word_error_rate(heard) - least)


def words_note(reference: Sequence[SpeechReport]) -> str | None:
    """Why words are not judged though they were listened to."""
    rate = word_error_rate([item.words for item in reference if item.words is not None])
    if rate <= _UNINTELLIGIBLE:
        return None
    return f"word errors are not judged: the recogniser gets {rate:.0%} of the reference's own words wrong"


def _check(gate: Gate, name: str, subject: str, measured: float, more: str = "") -> list[Check]:
    limit = getattr(gate, name)
    if limit is None:
        return []
    passed = measured >= limit if name.startswith("min_") else measured <= limit
    figure = _FIGURES[name]
    return [Check(name, subject, figure.what, figure.unit, measured, limit, passed, "" if passed else more)]


def _label(graph: GraphReport) -> str:
    return f"graph {graph.name} ({graph.flavour}, {graph.precision})"


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
