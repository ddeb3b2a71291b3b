"""Find the codec that belongs to a MOSS-TTS bundle.

In: the bundle, how graphs are loaded, and the model's settings. Out: a `Codec` with its loader, or an error that says
which codec is needed and where it was looked for. Any codec bundle that has the model's codebooks will do.
"""

from __future__ import annotations

import logging
from pathlib import Path

from voxedge.engines.bundle import Bundle
from voxedge.engines.errors import BundleError, MissingResourceError
from voxedge.engines.loader import GraphLoader
from voxedge.runtime.codec import Codec
from voxedge.runtime.systems.moss_settings import MossSettings

logger = logging.getLogger(__name__)

_NEIGHBOUR = "codec"


def open_codec(bundle: Bundle, loader: GraphLoader, settings: MossSettings) -> tuple[Codec, GraphLoader]:
    """Open the codec that was named, that of the bundle itself, or one that lies beside it.

    Raises:
        MissingResourceError: None was given and none lies beside the bundle.
        BundleError: It has not the model's codebooks.
    """
    found = Bundle.open(_folder(bundle, loader.options.codec, settings))
    codec_loader = GraphLoader(found, loader.options)
    codec = Codec.of(found, codec_loader)
    known = codec.settings
    if known.codebooks < settings.channels or known.codebook_size < max(settings.codebooks):
        raise BundleError(
            f"{found.root}: expected a codec of {settings.channels} codebooks with {max(settings.codebooks)} codes, "
            f"found {known.codebooks} with {known.codebook_size}; the model was trained with {settings.codec_name}"
        )
    if known.sample_rate != settings.sample_rate:
        trained = f"{settings.sample_rate} Hz ({settings.codec_name})"
        logger.warning("the model was trained with a codec of %s, this one has %d Hz", trained, known.sample_rate)
    return codec, codec_loader


def _folder(bundle: Bundle, given: Path | None, settings: MossSettings) -> Path:
    if given is not None:
        return given
    if "codec" in bundle.manifest.settings:
        return bundle.root
    name = settings.codec_name.rsplit("/", 1)[-1]
    for place in (bundle.root.parent / name, bundle.root.parent / _NEIGHBOUR):
        if place.is_dir():
            return place
    unknown = "; its code is not public, so voxedge cannot export it yet" if name.endswith("-v2") else ""
    raise MissingResourceError(
        f"expected the bundle of the codec {settings.codec_name} ({settings.sample_rate} Hz, {settings.channels} "
        f"codebooks) beside {bundle.root}, found none{unknown}; export the codec with `voxedge export` to "
        f"{bundle.root.parent / name}, or name a bundle with --codec DIR"
    )
