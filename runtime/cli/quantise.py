"""`voxedge quantise`: an FP32 or FP16 bundle becomes a smaller one, without its checkpoint.

In: a bundle's folder and precisions. Out: another bundle's folder, written in one step, and how much smaller each graph
is. The options are those of `voxedge export` too. Needs the ONNX libraries of the `export` extra.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import QualityError
from voxedge.engines.files import format_bytes
from voxedge.runtime.cli.common import Verbs, needs_extra, number
from voxedge.runtime.cli.console import Console, table
from voxedge.runtime.cli.synthesis import add_codec_flag

if TYPE_CHECKING:
    from voxedge.calibration.quantise.config import QuantiseConfig
    from voxedge.calibration.statistics import Statistics

PRECISIONS = ("int8", "int8-weight", "int4-weight", "mixed")
"""What quantising gives; `voxedge export` knows fp32 and fp16 besides."""

DEFAULT_MIN_SNR_DB = 25.0
"""An error of 6 % of the signal."""

_HEADER = ("graph", "precision", "size", "of source", "layers")


def add(verbs: Verbs) -> None:
    """Add the verb to the parser."""
    parser = verbs.add_parser("quantise", help="make a bundle smaller and faster")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="an FP32 or FP16 bundle")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the new bundle's folder")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8-weight", help="of layers that no rule names")
    add_options(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that a quantisation has besides its precision."""
    group = parser.add_argument_group("quantisation")
    add_codec_flag(group)
    group.add_argument("--statistics", type=Path, metavar="FILE", help="of `voxedge calibrate`, for int8 and AWQ")
    group.add_argument("--block", type=int, metavar="N", help="input channels that share a scale: 16, 32, 64, 128, 256")
    group.add_argument("--ranges", choices=("minmax", "percentile", "entropy", "mse"), default="mse", help="of int8")
    group.add_argument("--no-smooth", action="store_true", help="leave outliers of int8 activations where they are")
    group.add_argument(
        "--cpu-form",
        choices=("auto", "integer", "float"),
        default="auto",
        help="how the CPU computes int8 decoders and vocoders (default: measure, keep the faster)",
    )
    group.add_argument("--no-awq", action="store_true", help="round 4-bit weights without regard to activations")
    group.add_argument(
        "--kv-cache",
        choices=("float", "int8", "int8-tensor"),
        default="float",
        help="of decoders; int8 is calibrated, by channel, or by tensor for up to a tenth faster steps",
    )
    group.add_argument(
        "--min-snr",
        type=number(-100.0, 200.0),
        metavar="DB",
        help="for mixed: keep the layers that mind most higher until every output of every graph has this signal to "
        f"noise (default without --layer: {DEFAULT_MIN_SNR_DB:g})",
    )
    group.add_argument(
        "--base",
        choices=PRECISIONS[:3],
        default="int8-weight",
        help="for mixed: of layers that are not kept higher",
    )
    group.add_argument("--by", choices=("layer", "block"), default="layer", help="for mixed: what is kept higher")
    group.add_argument(
        "--layer",
        action="append",
        default=[],
        metavar="PATTERN=PRECISION",
        help="precision of the layers that a pattern names, such as '/layers.0/*=fp32' or 'dit:*/to_out/*=int8-weight'",
    )


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Quantise and say what came of it."""
    with needs_extra("export"):
        from voxedge.calibration.mixed import quantise_as_asked
    config = config_of(arguments, arguments.precision)
    with console.progress() as progress, needs_extra("export"):
        statistics = statistics_of(arguments)
        bundle = quantise_as_asked(arguments.bundle, arguments.output, config, statistics, progress, arguments.codec)
    source = Bundle.open(arguments.bundle)
    rows = _rows(bundle, source)
    data = {"bundle": str(bundle.root), "precision": config.precision, "graphs": rows}
    text = table([_cells(row) for row in rows], _HEADER)
    console.result(
        data, f"{text}\n{bundle.root}: {_total(bundle)}, the source has {_total(Bundle.open(arguments.bundle))}"
    )
    return judged(bundle, console)


def judged(bundle: Bundle, console: Console) -> int:
    """Exit code 5 where a bundle was verified and its gate is closed; it is there nevertheless, and not ready."""
    from voxedge.engines.readiness import readiness

    found = readiness(bundle)
    if found.state != "failed":
        return 0
    console.warn(f"{bundle.root} is the best that was found, and is not ready: {found.reason}")
    return QualityError.exit_code


def config_of(arguments: argparse.Namespace, precision: str) -> QuantiseConfig:
    """The options of a command line.

    Raises:
        ConfigError: One of them is not valid.
    """
    from voxedge.calibration.quantise.config import QuantiseConfig
    from voxedge.calibration.quantise.plan import parse_rule

    min_snr_db = arguments.min_snr
    if precision == "mixed" and not arguments.layer and min_snr_db is None:
        min_snr_db = DEFAULT_MIN_SNR_DB
    return QuantiseConfig(
        precision=precision,  # type: ignore[arg-type]  # checked by the record itself
        block_size=arguments.block,
        rules=tuple(map(parse_rule, arguments.layer)),
        ranges=arguments.ranges,
        smooth=not arguments.no_smooth,
        cpu_form=arguments.cpu_form,
        base=arguments.base,
        min_snr_db=min_snr_db,
        unit=arguments.by,
        awq=not arguments.no_awq,
        kv_cache=arguments.kv_cache,
        overwrite=arguments.force,
    )


def statistics_of(arguments: argparse.Namespace) -> Statistics | None:
    """The statistics of a command line; None where none were given.

    Raises:
        MissingResourceError: The file does not exist.
        InputError: It is damaged.
    """
    from voxedge.calibration.statistics import Statistics

    return None if arguments.statistics is None else Statistics.load(arguments.statistics)


def _rows(bundle: Bundle, source: Bundle) -> list[dict[str, Any]]:
    rows = []
    for name in dict.fromkeys(graph.name for graph in bundle.manifest.graphs):
        graph = bundle.manifest.graph(name)
        size, before = (one.manifest.files[one.manifest.graph(name).data].size for one in (bundle, source))
        layers = Counter(layer.precision for layer in graph.layers.values())
        row = {"graph": name, "precision": graph.precision, "bytes": size, "ratio": size / max(before, 1)}
        rows.append({**row, "layers": dict(layers)})
    return rows


def _cells(row: dict[str, Any]) -> list[str]:
    layers = ", ".join(f"{count} {precision}" for precision, count in row["layers"].items())
    return [row["graph"], row["precision"], format_bytes(row["bytes"]), f"{row['ratio']:.3f}", layers]


def _total(bundle: Bundle) -> str:
    return format_bytes(sum(record.size for record in bundle.manifest.files.values()))
