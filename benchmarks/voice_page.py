"""A page to listen to the demo voice: players and spectrograms, each beside the synthesiser that it learned from.

In: a bundle of the voice (none: the built-in one). Out: one HTML file that needs nothing else. Run it from the
repository's root: `PYTHONPATH=. python benchmarks/voice_page.py docs/voice.html`. Needs the Debian package flite.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from voice_measures import Sound

from examples.demo_voice import synthesiser
from examples.demo_voice.descriptions import Style
from voxedge.calibration.markup import Markup, element, join
from voxedge.calibration.pictures import data_address, picture, spectrogram
from voxedge.runtime.audio_files import encode_audio
from voxedge.runtime.synthesizer import Synthesizer

EXAMPLES = (
    ("Hello world, this is Anna.", "A woman.", Style("slt", 0, 0)),
    ("She put the letter on the table and left.", "A woman.", Style("slt", 0, 0)),
    ("The train was late because of the snow.", "A man.", Style("rms", 0, 0)),
    ("They walked along the beach for an hour.", "A scottish man.", Style("awb", 0, 0)),
    ("The red door is behind the office.", "A woman speaks slowly in a low voice.", Style("slt", -1, -1)),
    ("The red door is behind the office.", "A woman speaks fast and in a high voice.", Style("slt", 1, 1)),
    ("Our team won the last game of the season.", "A deep, slow man.", Style("rms", -1, -1)),
    ("He forgot to lock the front door.", "A calm scottish man speaks in a deep voice.", Style("awb", -1, -1)),
    ("Meet me at 7:30, and bring 42 apples.", "", Style("slt", 0, 0)),
)
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}figure{display:inline-block;"
    "margin:0 1rem 1rem 0}img{display:block;width:28rem;height:8rem;image-rendering:auto}audio{width:28rem}"
)
_BRIGHTEST = 0.999  # quantile of the levels that is drawn brightest


def main() -> None:
    """Speak, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Synthesizer.from_pretrained(arguments.bundle) as voice:
        cards = []
        for text, description, style in EXAMPLES:
            spoken = voice.synthesize(text, description=description, seed=arguments.seed).samples
            original = synthesiser.speak(text, style, Path(folder) / "flite.wav").samples[:, None] / np.float32(32768.0)
            cards.append(_card(text, description, spoken, original.astype(np.float32)))
    title = element("title", "The demo voice")
    head = element("head", Markup('<meta charset="utf-8">'), title, element("style", Markup(_STYLE)))
    body = element("body", element("h1", "The demo voice"), element("p", _INTRODUCTION), *cards)
    arguments.page.write_text(f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n", encoding="utf-8")


_INTRODUCTION = (
    "Left: voxedge's built-in voice. Right: flite, the synthesiser that it learned from. "
    "Spectrograms: 0 to 8 kHz, 75 dB."
)


def _card(text: str, description: str, spoken: Sound, original: Sound) -> Markup:
    figures = [_figure(f"voxedge: {description or 'no description'}", spoken), _figure("flite", original)]
    return element("section", element("h2", text), join(figures))


def _figure(title: str, samples: Sound) -> Markup:
    levels = spectrogram(samples, synthesiser.SAMPLE_RATE)
    image = data_address(picture(levels, float(np.quantile(levels, _BRIGHTEST))), "image/png")
    sound = data_address(encode_audio(samples, synthesiser.SAMPLE_RATE, ".flac"), "audio/flac")
    return element(
        "figure",
        element("img", src=image, alt=f"Spectrogram, {title}"),
        element("audio", controls=True, preload="none", src=sound),
        element("figcaption", title),
    )


if __name__ == "__main__":
    main()
