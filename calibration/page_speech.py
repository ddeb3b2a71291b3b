"""The part of the quality page that can be heard: players, spectrograms and figures of every utterance.

In: reports and sounds of utterances. Out: markup. Does not measure and does not judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from voxedge.calibration.markup import Markup, element, join, table
from voxedge.calibration.metrics import Float64
from voxedge.calibration.pictures import TOP_HZ, data_address, picture, spectrogram
from voxedge.calibration.report import SpeechDifference, SpeechReport, UtteranceReport
from voxedge.calibration.speech_check import Sounds
from voxedge.runtime.audio_files import encode_audio
from voxedge.runtime.systems.base import Samples

_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 400, 150, 42, 17
_MAX_S = 30.0  # of each sound


def speech_section(utterances: Sequence[UtteranceReport], sounds: Sequence[Sounds]) -> Markup:
    """All utterances; the sounds of the first few."""
    if not utterances:
        return Markup()
    cards = [
        _card(number, item, sounds[number - 1] if number <= len(sounds) else None)
        for number, item in enumerate(utterances, 1)
    ]
    more = ""
    if len(utterances) > len(sounds):
        more = f" The first {len(sounds)} of {len(utterances)} can be heard."
    text = (
        "Same tokens: the bundle was made to take the reference's tokens, so that both can be compared moment by "
        f"moment. By itself: what it says when left alone.{more}"
    )
    return element("section", element("h2", "Speech"), element("p", text, class_="soft"), *cards)


def _card(number: int, item: UtteranceReport, sounds: Sounds | None) -> Markup:
    about = f"seed {item.seed}" + (f" · {item.description}" if item.description else "")
    parts = [element("h3", f"{number}. {item.text}"), element("p", about, class_="soft")]
    if sounds is not None:
        parts.append(_figures(sounds))
    parts.append(_own_figures(item))
    if item.difference is not None:
        parts.append(_difference(item.difference))
    return element("article", *parts, class_="card")


def _figures(sounds: Sounds) -> Markup:
    named: list[tuple[str, Samples]] = [("bundle, by itself", sounds.own)]
    if sounds.reference is not None and sounds.follower is not None:
        same = sounds.follower is sounds.own or np.array_equal(sounds.follower, sounds.own)
        follower = ("bundle, by itself and with the same tokens" if same else "bundle, same tokens", sounds.follower)
        named = [("reference", sounds.reference), follower, *([] if same else named)]
    length = round(_MAX_S * sounds.sample_rate)
    cut = [(title, np.nan_to_num(samples[:length])) for title, samples in named]
    drawn = [spectrogram(samples, sounds.sample_rate) for _, samples in cut]
    loudest = float(drawn[0].max())
    return element(
        "div",
        *(
            _figure(title, samples, levels, loudest, sounds.sample_rate)
            for (title, samples), levels in zip(cut, drawn, strict=True)
        ),
        class_="pair",
    )


def _figure(title: str, samples: Samples, levels: Float64, loudest: float, rate: int) -> Markup:
    """One spectrogram over its player; the axes are kHz and seconds."""
    address = data_address(picture(levels, loudest), "image/png")
    duration, top = len(samples) / rate, min(TOP_HZ, rate / 2.0) / 1000.0
    width, height = _WIDTH - _LEFT, _HEIGHT - _BOTTOM
    image = element("image", href=address, x=_LEFT, y=0, width=width, height=height, preserveAspectRatio="none")
    labels = [
        *(
            _label(f"{share * top:g} kHz", _LEFT - 6, height * (1.0 - share) + (12 if share == 1.0 else 0))
            for share in (1.0, 0.5)
        ),
        _label("0", _LEFT - 6, height),
        _label("0 s", _LEFT, _HEIGHT - 4, "start"),
        _label(f"{duration:.2f} s", _WIDTH, _HEIGHT - 4),
    ]
    drawing = element(
        "svg", image, *labels, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=f"spectrogram: {title}"
    )
    sound = data_address(encode_audio(samples, rate, ".flac"), "audio/flac")
    player = element("audio", controls=True, preload="none", src=sound)
    return element("figure", element("figcaption", title), drawing, player)


def _label(text: str, x: float, y: float, anchor: str = "end") -> Markup:
    return element("text", text, x=x, y=y, text_anchor=anchor)


def _own_figures(item: UtteranceReport) -> Markup:
    both = [("bundle", item.speech), *([("reference", item.reference)] if item.reference else [])]
    heard = any(speech.words for _, speech in both)
    header = [
        "by itself",
        "seconds",
        "tokens",
        "loudness",
        "peak",
        "clipped",
        "silent",
        *(["words wrong"] if heard else []),
    ]
    rows = [_own_row(name, speech, heard) for name, speech in both]
    lines = [
        element("p", f"{name}, as heard: {speech.words.heard or '(nothing)'}", class_="soft")
        for name, speech in both
        if speech.words is not None
    ]
    return join([table(header, rows, numbers=range(1, len(header))), *lines])


def _own_row(name: str, speech: SpeechReport, heard: bool) -> list[str]:
    words = "-" if speech.words is None else f"{speech.words.errors} of {speech.words.words}"
    return [
        name,
        f"{speech.duration_s:.2f}",
        f"{speech.tokens}{' (cut)' if speech.finish_reason == 'length' else ''}",
        f"{speech.loudness_lufs:.1f} LUFS",
        f"{speech.peak:.2f}",
        f"{speech.clipped_fraction:.1%}",
        f"{speech.silent_fraction:.0%}",
        *([words] if heard else []),
    ]


def _difference(item: SpeechDifference) -> Markup:
    pitch = "-" if item.pitch_error_cents is None else f"{item.pitch_error_cents:.1f} cents"
    diverges = "never" if item.first_divergence is None else f"at token {item.first_divergence}"
    header = (
        "same tokens",
        "signal to noise",
        "mel distance",
        "log spectrum",
        "loudness",
        "pitch",
        "voicing",
        "likeliest token",
    )
    row = (
        f"diverges {diverges}",
        f"{item.waveform_snr_db:.1f} dB",
        f"{item.mel_distance_db:.2f} dB",
        f"{item.log_spectral_distance_db:.2f} dB",
        f"{round(item.loudness_difference_lu, 2) + 0.0:+.2f} LU",
        pitch,
        f"{item.voicing_agreement:.1%}",
        f"{item.token_agreement:.1%}",
    )
    return table(header, [row], numbers=range(1, len(header)))
