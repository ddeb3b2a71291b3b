"""What a bundle must keep of its reference's quality, and sentences about what it does not.

In: figures of `calibration.report`. Out: failures in words. Does not measure.

The default limits come from the small random models that the tests export, where the worst output of any graph was:

| compared | LM | diffusion network | vocoder | autoencoder's encoder |
|---|---|---|---|---|
| FP32, one flavour with the other | 115 dB | | | |
| FP16 with FP32 | 51 dB | 66 dB | 38 dB | 36 dB |
| FP16, one flavour with the other | 51 dB | | | |

One rounding costs 2**-24 / sqrt(3) of a value's size at FP32 (149 dB) and 2**-11 / sqrt(3) at FP16 (71 dB); n roundings
that do not know of each other cost 10 log10(n) dB more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from voxedge.calibration.report import GraphReport, SpeechDifference, SpeechReport
from voxedge.engines.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Gate:
    """Limits for one precision."""

    min_graph_snr_db: float
    """Every output of every graph, against the reference."""
    min_flavour_snr_db: float
    """Every output, one flavour against the other."""
    min_token_agreement: float
    """Share of draws at which the most likely token is the reference's."""
    max_log_spectral_distance_db: float
    """Of the sound of the same tokens."""
    max_loudness_difference_db: float
    """Of the sound of the same tokens, either way."""
    max_clipped_fraction: float = 0.01
    """Samples beyond full scale that the reference's speech does not have."""


GATES: Mapping[str, Gate] = {
    # 80 dB leaves room for 10 ** 6.9 roundings, or for an operator that loses three digits where it subtracts; a wrong
    # weight, scale or axis costs far more. Logits within 80 dB change the most likely token at exact ties only.
    "fp32": Gate(
        min_graph_snr_db=80.0,
        min_flavour_snr_db=80.0,
        min_token_agreement=0.97,
        max_log_spectral_distance_db=0.1,
        max_loudness_difference_db=0.05,
    ),
    # 30 dB is an error of 3 % of the signal, 6 dB below the worst measured graph. Two flavours err independently, so
    # between them it may be twice the power: 3 dB less. Among near-equal logits of an untrained model 36 of 37 tokens
    # agreed. Spectra differed by 0.5 dB and loudness by 0.0002 dB; about 1 dB of spectral distance is where coded
    # speech stops being transparent (Paliwal and Atal 1993), quiet bins 80 dB below the peak add to it.
    "fp16": Gate(
        min_graph_snr_db=30.0,
        min_flavour_snr_db=27.0,
        min_token_agreement=0.9,
        max_log_spectral_distance_db=2.0,
        max_loudness_difference_db=0.5,
    ),
}
"""Defaults by precision. SNR alone judges graphs: 30 dB implies a cosine of 0.9995."""


def gate_of(precisions: Iterable[str], gates: Mapping[str, Gate]) -> Gate:
    """The gate of the coarsest precision, which decides what can be asked of a whole bundle.

    Raises:
        ConfigError: There is no gate for a precision.
    """
    wanted = set(precisions)
    unknown = sorted(wanted - set(gates))
    if unknown or not wanted:
        raise ConfigError(f"expected precisions among {', '.join(gates)}, found {', '.join(unknown) or 'none'}")
    return min((gates[precision] for precision in wanted), key=lambda gate: gate.min_graph_snr_db)


def graph_failures(graph: GraphReport, gate: Gate) -> list[str]:
    """What is wrong with one graph."""
    label = f"graph {graph.name} ({graph.flavour}, {graph.precision})"
    if graph.broken:
        share = 100.0 * (1.0 - graph.finite)
        return [f"{label}: expected numbers, found {share:.3g} % NaN or infinity, in {_some(graph.broken)}"]
    limit = gate.min_graph_snr_db if graph.against == "reference" else gate.min_flavour_snr_db
    low = sorted((output for output in graph.outputs if output.snr_db < limit), key=lambda output: output.snr_db)
    if not low:
        return []
    other = "the reference" if graph.against == "reference" else "its portable flavour"
    return [
        f"{label}: expected at least {limit:g} dB of signal to noise against {other}, found {low[0].snr_db:.1f} dB; "
        f"{len(low)} of {len(graph.outputs)} outputs are below, the worst are {_some([item.name for item in low])}"
    ]


def speech_failures(speech: SpeechReport, reference: SpeechReport | None, gate: Gate) -> list[str]:
    """What is wrong with what a bundle said; clipping fails only where the reference does not clip as much."""
    found = []
    if speech.silent:
        found.append(f"expected speech, found silence: the peak of {speech.duration_s:.2f} s is {speech.peak:.2g}")
    if reference is not None and speech.clipped_fraction > reference.clipped_fraction + gate.max_clipped_fraction:
        found.append(
            f"expected at most {gate.max_clipped_fraction:.1%} of the samples beyond full scale more than in the "
            f"reference's speech, found {speech.clipped_fraction:.1%} beside {reference.clipped_fraction:.1%}"
        )
    return found


def difference_failures(difference: SpeechDifference, gate: Gate) -> list[str]:
    """What is wrong with speech beside the reference's.

    Tokens that were drawn freely need not be equal: a draw near a border may fall to either side, and all that follow
    are then others, as good as the reference's.
    """
    found = []
    if difference.token_agreement < gate.min_token_agreement:
        found.append(
            f"expected the most likely token to be the reference's in {gate.min_token_agreement:.0%} of the draws, "
            f"found {difference.token_agreement:.0%}"
        )
    if difference.log_spectral_distance_db > gate.max_log_spectral_distance_db:
        found.append(
            f"expected a log-spectral distance of at most {gate.max_log_spectral_distance_db:g} dB between sounds of "
            f"the same tokens, found {difference.log_spectral_distance_db:.2f} dB"
        )
    if abs(difference.loudness_difference_db) > gate.max_loudness_difference_db:
        found.append(
            f"expected the reference's loudness within {gate.max_loudness_difference_db:g} dB for the same tokens, "
            f"found {difference.loudness_difference_db:+.2f} dB"
        )
    return found


def _some(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
