"""The page is one file that loads nothing and runs nothing, whatever the names and texts in it are."""

from __future__ import annotations

import base64
import html.parser
import io
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxedge.calibration import pictures
from voxedge.calibration.gate import GATES, difference_checks, graph_checks
from voxedge.calibration.markup import Markup, element, join
from voxedge.calibration.metrics import TensorDifference
from voxedge.calibration.page import bar, render_page
from voxedge.calibration.recogniser import WordErrors
from voxedge.calibration.report import (
    GraphReport,
    GraphSize,
    SpeechDifference,
    SpeechReport,
    UtteranceReport,
    VerifyReport,
)
from voxedge.calibration.speech_check import Sounds
from voxedge.calibration.verify import Verification
from voxedge.engines.bundle import Bundle, BundleWriter
from voxedge.engines.manifest import DimRange, GraphSpec, LayerSpec, ManifestDraft, TensorSpec

HOSTILE = "<script>alert(1)</script>\"'&</style><img src=x onerror=alert(1)>"
RATE = 16_000
GRAPH = GraphSpec(
    "dit",
    "portable",
    "graphs/dit.onnx",
    "graphs/dit.data",
    "int8",
    17,
    (TensorSpec("x", "float32", ("rows",)),),
    (TensorSpec("y", "float32", ("rows",)),),
    {"main": {"rows": DimRange(1, 2, 8)}},
    layers={HOSTILE: LayerSpec("int8"), "/layers.0/MatMul": LayerSpec("int4-weight", 32)},
)


class Page(html.parser.HTMLParser):
    """Elements and their attributes; complains about what is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what opens."""
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what has no content."""
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """Close the last that is open."""
        assert self.open.pop() == tag


def tone(seconds: float, hz: float = 220.0) -> np.ndarray:
    return (0.3 * np.sin(2.0 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)[:, None]


@pytest.fixture
def found(tmp_path: Path) -> Verification:
    with BundleWriter(tmp_path / "bundle") as writer:
        writer.path(GRAPH.path).write_bytes(b"graph")
        writer.path(GRAPH.data).write_bytes(b"weights")
        bundle = writer.commit(ManifestDraft("toy", {}, (GRAPH,)))
    return Verification(
        report(bundle), bundle, bundle, (Sounds(HOSTILE, RATE, tone(0.5), tone(0.4), tone(0.4, 230.0)),)
    )


def report(bundle: Bundle) -> VerifyReport:
    outputs = tuple(TensorDifference(f"{HOSTILE}{place}", 20.0 + place, 0.99, 0.1, 1.0) for place in range(6))
    graph = GraphReport("dit", "portable", "int8", 3, 1.0, (), "reference", outputs)
    speech = SpeechReport(0.5, 12, "length", -20.0, 0.3, 0.0, silent=False, words=WordErrors(HOSTILE, 3, 4))
    beside = SpeechDifference(
        False, 5, 12, 0.5, 10.0, 5.0, 3.0, 4.0, 3.5, -0.004, None, 0.9, 0.8, 0.0, 0.0, 0.1
    )  # fmt: skip
    checks = (*graph_checks(graph, GATES["fp16"]), *difference_checks(beside, GATES["fp16"]))
    return VerifyReport(
        bundle=str(bundle.root / HOSTILE.replace("/", "_")),
        reference=HOSTILE,
        precisions=("int8",),
        graphs=(graph, GraphReport("vae", "ort", "int8", 1, 0.5, ("y",))),
        sizes=(GraphSize("dit", 250, 1000),),
        utterances=(UtteranceReport(HOSTILE, HOSTILE, 1, speech, speech, beside),),
        difference=beside,
        checks=checks,
        failures=(HOSTILE, *(check.sentence for check in checks if not check.passed)),
        notes=(HOSTILE,),
    )


def test_the_page_is_whole_and_loads_and_runs_nothing(found: Verification) -> None:
    text = render_page(found)
    page = Page(text)
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form", "img"})
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert "url(" not in text
    assert "@import" not in text
    policies = [given["content"] for tag, given in page.elements if tag == "meta" and "http-equiv" in given]
    assert policies == ["default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"]


def test_every_text_is_escaped(found: Verification) -> None:
    text = render_page(found)
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("</style>") == 1
    assert text.count("&lt;script&gt;") >= 8  # text, voice, heard words, outputs, layers, failures, notes, reference


def test_figures_limits_and_the_verdict_are_there(found: Verification) -> None:
    text = render_page(found)
    for expected in (
        "failed",
        "20.0 dB",
        "≥ 30 dB",
        "beyond",
        "50.0 %",
        "0.250",
        "int4-weight/32",
        "75 %",
        "+0.00 LU",
        "diverges at token 5",
        "12 (cut)",
        "50.00%",
    ):
        assert expected in text, expected


def test_sounds_and_pictures_are_in_the_page(found: Verification) -> None:
    text = render_page(found)
    sounds = re.findall(r"data:audio/flac;base64,([^\"]+)", text)
    assert len(sounds) == 3
    lengths = [len(soundfile.read(io.BytesIO(base64.b64decode(sound)))[0]) for sound in sounds]
    assert lengths == [round(0.4 * RATE), round(0.4 * RATE), round(0.5 * RATE)]
    assert len(re.findall(r"data:image/png;base64,", text)) == 3


def test_a_bundle_judged_alone_has_a_page(found: Verification, tmp_path: Path) -> None:
    speech = SpeechReport(0.5, 12, "stop", -70.0, 0.0, 0.0, silent=True, silent_fraction=1.0)
    alone = VerifyReport(
        "b", None, ("fp32",), (), (GraphSize("dit", 10),), (UtteranceReport("a", "", 0, speech),), None, (), (), ()
    )
    silence = Sounds("a", RATE, np.full((0, 1), 0.0, np.float32))
    text = render_page(Verification(alone, found.bundle, None, (silence,)))
    assert Page(text).open == []
    assert "judged alone" in text


def test_elements_escape_what_is_not_markup() -> None:
    assert element("a", "<", Markup("<b></b>"), title='"<') == '<a title="&quot;&lt;">&lt;<b></b></a>'
    assert element("i", hidden=True, lang=None, id_=False) == "<i hidden></i>"
    assert join(["<", Markup("<")]) == "&lt;<"


def test_bars_end_at_their_ends() -> None:
    assert "width:0.0%" in bar(-200.0, None)
    assert "width:100.0%" in bar(200.0, 30.0)
    assert 'class="bar bad"' in bar(29.0, 30.0)


def unpack(content: bytes) -> tuple[int, int, bytes]:
    """Width, height and rows of an indexed PNG; every checksum is compared."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        kind, data = content[place + 4 : place + 8], content[place + 8 : place + 8 + length]
        assert zlib.crc32(kind + data) == struct.unpack(">I", content[place + 8 + length : place + 12 + length])[0]
        chunks[kind] = data
        place += 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    return width, height, zlib.decompress(chunks[b"IDAT"])


def test_a_png_holds_its_pixels() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    width, height, rows = unpack(pictures.png(pixels, pictures.palette()))
    assert (width, height) == (4, 3)
    assert rows == b"".join(b"\0" + bytes(row) for row in pixels)


def test_a_tone_is_a_bright_line_at_its_frequency() -> None:
    levels = pictures.spectrogram(tone(1.0, 2000.0), RATE)
    row = int(levels.mean(axis=1).argmax())
    assert row / len(levels) * RATE / 2 == pytest.approx(2000.0, abs=RATE / 2 / len(levels))
    _, height, rows = unpack(pictures.picture(levels, float(levels.max())))
    drawn = np.frombuffer(rows, np.uint8).reshape(height, -1)[:, 1:]
    assert int(drawn.mean(axis=1).argmax()) == height - 1 - row  # low frequencies are at the bottom
    assert drawn.max() == 255
