"""One self-contained HTML page about a verification: to look at, to listen to, to send to somebody.

In: a `Verification`, and the sensitivity of the bundle's layers where it keeps one. Out: the text of a page that loads
nothing and runs nothing: pictures and sounds are in it, and its policy forbids everything else. Does not measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from voxedge.calibration.markup import Markup, element, join, table
from voxedge.calibration.page_speech import speech_section
from voxedge.calibration.report import Check, GraphReport, VerifyReport, word_error_rate
from voxedge.calibration.sensitivity import GraphSensitivity, Sensitivity, read_sensitivity
from voxedge.calibration.verify import Verification
from voxedge.engines.files import format_bytes
from voxedge.engines.manifest import GraphSpec, LayerSpec

_STYLE = Path(__file__).parent / "data" / "page.css"
_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
_SCALE_DB = 100.0
"""Full length of a bar."""
_FEW = 4  # outputs up to which a graph needs no list of them


def render_page(found: Verification) -> str:
    """The page.

    Args:
        found: What was verified.
    """
    report = found.report
    name = Path(report.bundle).name
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{name}: quality"),
        element("style", Markup(_STYLE.read_text(encoding="utf-8"))),
    )
    sections = (
        _header(report, name),
        _tiles(report),
        _problems(report),
        _gate(report.checks),
        _graphs(report),
        _sizes(report),
        _layers(found.bundle.manifest.graphs),
        _sensitivity(read_sensitivity(found.bundle)),
        speech_section(report.utterances, found.sounds),
        _notes(report),
    )
    body = element("body", element("main", *sections))
    return "<!doctype html>\n" + element("html", head, body, lang="en")


def _section(title: str, *children: str) -> Markup:
    return element("section", element("h2", title), *children)


def _header(report: VerifyReport, name: str) -> Markup:
    verdict = element("span", "passed" if report.passed else "failed", class_=f"verdict {_colour(report.passed)}")
    beside = f"compared with {report.reference}" if report.reference else "judged alone, without a reference"
    about = f"{', '.join(report.precisions)} · {report.bundle} · {beside}"
    return join([element("header", element("h1", name), verdict), element("p", about, class_="soft")])


def _tiles(report: VerifyReport) -> Markup:
    """The figures that people ask for first."""
    tiles: list[tuple[str, str]] = []
    compared = [graph.worst.snr_db for graph in report.graphs if graph.against == "reference" and graph.worst]
    if compared:
        tiles.append((f"{min(compared):.1f} dB", "signal to noise of the worst graph output"))
    size, before = (sum(sizes) for sizes in zip(*((s.size, s.reference_size or 0) for s in report.sizes), strict=True))
    tiles.append(
        (f"{size / before:.2f}x" if before else format_bytes(size), f"size of the weights, {format_bytes(size)}")
    )
    if report.difference is not None:
        item = report.difference
        tiles += [
            (f"{100.0 * item.token_agreement:.1f} %", f"of {item.draws} draws have the same likeliest token"),
            (f"{item.mel_distance_db:.2f} dB", "mel distance of the same tokens"),
            (f"{round(item.loudness_difference_lu, 2) + 0.0:+.2f} LU", "loudness of the same tokens"),
        ]
        if item.pitch_error_cents is not None:
            tiles.append((f"{item.pitch_error_cents:.1f} cents", "median pitch error of the same tokens"))
    heard = [item.speech.words for item in report.utterances if item.speech.words is not None]
    if heard:
        base = [item.reference.words for item in report.utterances if item.reference and item.reference.words]
        beside = f", {word_error_rate(base):.0%} for the reference" if base else ""
        tiles.append((f"{100.0 * word_error_rate(heard):.0f} %", f"words wrong{beside}"))
    return element(
        "div", *(element("div", element("b", b), element("span", s), class_="tile") for b, s in tiles), class_="tiles"
    )


def _problems(report: VerifyReport) -> Markup:
    if report.passed:
        return Markup()
    return _section("What is wrong", element("ul", *(element("li", failure) for failure in report.failures)))


def _gate(checks: Iterable[Check]) -> Markup:
    rows = [
        (
            check.subject,
            check.what,
            ("≥ " if check.limit_name.startswith("min_") else "≤ ") + check.limit_text,
            check.measured_text,
            element("b", "ok" if check.passed else "beyond", class_=_colour(check.passed)),
        )
        for check in checks
    ]
    if not rows:
        return Markup()
    return _section("Gate", table(("what", "figure", "limit", "measured", ""), rows, numbers=(2, 3, 4)))


def _graphs(report: VerifyReport) -> Markup:
    limits = {(check.subject, check.limit_name): check.limit for check in report.checks}
    rows = []
    for graph in report.graphs:
        subject = f"graph {graph.name} ({graph.flavour}, {graph.precision})"
        limit = limits.get((subject, "min_graph_snr_db" if graph.against == "reference" else "min_flavour_snr_db"))
        rows.append(_graph_row(graph, limit))
    text = element(
        "p",
        "Every graph was given what it was really given while the reference spoke. The worst output of the worst call "
        "counts; the mark on a bar is its limit, its end is 100 dB.",
        class_="soft",
    )
    header = ("graph", "flavour", "against", "signal to noise", "", "cosine", "max error", "finite")
    return _section("Graphs", text, table(header, rows, numbers=(4, 5, 6, 7)), *map(_outputs, report.graphs))


def _graph_row(graph: GraphReport, limit: float | None) -> tuple[str, ...]:
    finite = "yes" if not graph.broken else f"{graph.finite:.2%}"
    name, against = element("code", graph.name), graph.against or "-"
    if graph.worst is None:
        return name, graph.flavour, against, "", "-", "-", "-", finite
    return (
        name,
        graph.flavour,
        against,
        bar(graph.worst.snr_db, limit),
        f"{graph.worst.snr_db:.1f} dB",
        f"{min(item.cosine for item in graph.outputs):.6f}",
        f"{max(item.max_error for item in graph.outputs):.1e}",
        finite,
    )


def _outputs(graph: GraphReport) -> Markup:
    """Bars of all outputs: the caches show where along the layers an error grows."""
    if len(graph.outputs) <= _FEW or graph.against != "reference":
        return Markup()
    rows = [
        (element("code", item.name), bar(item.snr_db, None), f"{item.snr_db:.1f} dB", f"{item.cosine:.6f}")
        for item in graph.outputs
    ]
    title = element("summary", f"{graph.name} ({graph.flavour}): {len(rows)} outputs, layer by layer")
    return element("details", title, table(("output", "signal to noise", "", "cosine"), rows, numbers=(2, 3)))


def _sizes(report: VerifyReport) -> Markup:
    rows = [
        (
            element("code", size.name),
            format_bytes(size.size),
            "-" if size.reference_size is None else format_bytes(size.reference_size),
            "-" if size.ratio is None else f"{size.ratio:.3f}",
        )
        for size in report.sizes
    ]
    return _section("Weights", table(("graph", "size", "reference", "ratio"), rows, numbers=(1, 2, 3)))


def _layers(graphs: Iterable[GraphSpec]) -> Markup:
    """What became of every layer, as the manifest says."""
    portable = [graph for graph in graphs if graph.flavour == "portable" and graph.layers]
    if not portable:
        return Markup()
    counts = [
        (
            element("code", graph.name),
            ", ".join(f"{form} {n}" for form, n in Counter(map(_form, graph.layers.values())).most_common()),
        )
        for graph in portable
    ]
    rows = [
        (element("code", graph.name), element("code", path), _form(layer))
        for graph in portable
        for path, layer in graph.layers.items()
    ]
    details = element("details", element("summary", f"all {len(rows)} layers"), table(("graph", "layer", "form"), rows))
    return _section("Precision of the layers", table(("graph", "layers of each form"), counts), details)


def _form(layer: LayerSpec) -> str:
    return layer.precision if layer.block is None else f"{layer.precision}/{layer.block}"


def _sensitivity(found: Sensitivity | None) -> Markup:
    if found is None:
        return Markup()
    text = (
        f"Signal to noise at the graph's worst output when this {found.unit} alone is {found.precision}, the most "
        "sensitive first. What is kept higher was chosen by it."
    )
    tables = [_graph_units(graph, found.unit, place == 0) for place, graph in enumerate(found.graphs)]
    return _section("Sensitivity", element("p", text, class_="soft"), *tables)


def _graph_units(graph: GraphSensitivity, unit: str, is_open: bool) -> Markup:
    kept = sum(item.kept_as is not None for item in graph.units)
    about = f"{graph.graph}: {kept} of {len(graph.units)} {unit}s kept higher, {graph.chosen_snr_db:.1f} dB"
    rows = [
        (element("code", item.path), bar(item.snr_db, None), f"{item.snr_db:.1f} dB", item.kept_as or "-")
        for item in graph.units
    ]
    if not rows:
        return element("p", f"{graph.graph}: all layers at once are good enough, {graph.all_snr_db:.1f} dB")
    header = (unit, "signal to noise", "", "kept as")
    return element("details", element("summary", about), table(header, rows, numbers=(2,)), open=is_open)


def _notes(report: VerifyReport) -> Markup:
    notes = element("ul", *(element("li", note) for note in report.notes)) if report.notes else Markup()
    return element(
        "footer",
        notes,
        element(
            "p",
            "Made by voxedge verify on ONNX Runtime's CPU provider. Mel distance: mean absolute difference of 80-band "
            "log-mel spectra; loudness: ITU-R BS.1770-4; pitch: YIN on frames that are voiced in both.",
            class_="soft",
        ),
    )


def bar(snr_db: float, limit: float | None) -> Markup:
    """A bar from 0 to 100 dB, with a mark at its limit."""
    mark = Markup() if limit is None else element("u", style=f"left:{_percent(limit)}")
    good = limit is None or snr_db >= limit
    return element("div", element("i", style=f"width:{_percent(snr_db)}"), mark, class_="bar" if good else "bar bad")


def _percent(decibels: float) -> str:
    return f"{100.0 * min(max(decibels / _SCALE_DB, 0.0), 1.0):.1f}%"


def _colour(passed: bool) -> str:
    return "good" if passed else "bad"
