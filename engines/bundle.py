"""The bundle on disk: opened with every file checked, written so that it is never half there.

In: a folder. Out: `Bundle`, whose manifest was validated and whose files are present with their sizes (and hashes, on
demand); or, from a `BundleWriter`, a new bundle under its name in one step. Does not interpret graphs or settings, and
leaves `engines/`, which is built on the device, to `engines.trt`.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from voxedge.engines import files, folders
from voxedge.engines.errors import BundleError, ConfigError, ExportError, InputError, MissingResourceError
from voxedge.engines.manifest import (
    MANIFEST_NAME,
    FileRecord,
    GraphSpec,
    Manifest,
    ManifestDraft,
    check_relative,
    dump_manifest,
    parse_manifest,
)

MAX_MANIFEST_BYTES = 16 << 20
ENGINES_FOLDER = "engines"
VERIFY_REPORT = "reports/verify.json"
"""What `voxedge verify` leaves in a bundle; like engines it is made later and is not among the manifest's files."""

_USUAL_FOLDERS = frozenset({"graphs", "tokenizer", "voices", "reports", ENGINES_FOLDER})
_MEND = "; copy the bundle again, or export the checkpoint again"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest was validated and whose files are all there."""

    root: Path
    """The folder, absolute and without symbolic links."""
    manifest: Manifest
    """What the bundle says about itself."""

    @classmethod
    def open(cls, path: str | Path, verify_hashes: bool = False) -> Bundle:
        """Read and check a bundle.

        Args:
            path: The bundle's folder.
            verify_hashes: Also read every file and compare its SHA-256.

        Raises:
            MissingResourceError: There is no such folder, or no manifest in it, or a file of it is missing.
            BundleError: The manifest or a file is damaged, or leads out of the bundle.

        Example:
            >>> Bundle.open("moe-tts", verify_hashes=True).manifest.system  # doctest: +SKIP
            'moe_tts'
        """
        root = Path(os.path.realpath(path))
        folders.recover(root)
        if not root.exists():
            raise MissingResourceError(f"expected a bundle at {path}, found nothing; give its folder")
        if not root.is_dir():
            raise BundleError(f"expected the folder of a bundle, found the file {path}; give the folder that it is in")
        if not (root / MANIFEST_NAME).is_file():
            raise MissingResourceError(
                f"{path} has no {MANIFEST_NAME}, so it is not a bundle; "
                f"write one with `voxedge export CHECKPOINT -o {path}`"
            )
        if (root / MANIFEST_NAME).is_symlink():
            raise BundleError(f"{root / MANIFEST_NAME}: expected a regular file, found a symbolic link")
        bundle = cls(root, parse_manifest(files.read_json(root / MANIFEST_NAME, MAX_MANIFEST_BYTES)))
        for relative, record in bundle.manifest.files.items():
            bundle._check_file(relative, record)
        for graph in bundle.manifest.graphs:
            if bundle.manifest.files[graph.path].size == 0:
                raise BundleError(f"{bundle.path(graph.path)}: expected an ONNX graph, found an empty file{_MEND}")
        if verify_hashes:
            bundle.verify_hashes()
        return bundle

    def path(self, relative: str) -> Path:
        """The absolute path of something in the bundle, which need not exist.

        Raises:
            BundleError: The path, or a symbolic link on its way, leaves the bundle.
        """
        try:
            check_relative(relative)
        except ConfigError as error:
            raise BundleError(str(error)) from error
        found = Path(os.path.realpath(self.root / relative))
        if not found.is_relative_to(self.root):
            raise BundleError(f"{self.root / relative}: expected a file inside the bundle, found a link to {found}")
        return self.root / relative

    def graph_path(self, graph: GraphSpec) -> Path:
        """The .onnx file of `graph`."""
        return self.path(graph.path)

    def data_path(self, graph: GraphSpec) -> Path:
        """The weights of `graph`."""
        return self.path(graph.data)

    def verify_hashes(self) -> None:
        """Read every file and compare its SHA-256 with the manifest.

        Raises:
            BundleError: A file differs.
        """
        for relative, record in self.manifest.files.items():
            found = files.hash_file(self.path(relative))
            if found != record.sha256:
                raise BundleError(f"{self.root / relative}: expected sha256 {record.sha256}, found {found}{_MEND}")

    def _check_file(self, relative: str, record: FileRecord) -> None:
        path = self.path(relative)
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise MissingResourceError(f"{path} is missing, though {MANIFEST_NAME} lists it{_MEND}") from error
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path}: expected a regular file, found a folder or a device")
        if status.st_size != record.size:
            raise BundleError(f"{path}: expected {record.size} bytes, found {status.st_size}{_MEND}")


class BundleWriter:
    """Writes a bundle beside its place and puts it there in one step.

    Files go to a hidden folder beside the target, so that a killed or failed export leaves what was there before.

    Example:
        >>> with BundleWriter("out", required_bytes=0) as writer:  # doctest: +SKIP
        ...     writer.path("graphs/decoder.onnx").write_bytes(graph)
        ...     bundle = writer.commit(ManifestDraft("moe_tts", settings={}, graphs=(spec,)))
    """

    def __init__(self, target: str | Path, overwrite: bool = False, required_bytes: int = 0) -> None:
        """Prepare; nothing is written before the `with` block starts.

        Args:
            target: The bundle's folder.
            overwrite: Replace a bundle that is there; any other folder with content is left alone in any case.
            required_bytes: What will be written at most; checked against the free disk space first.
        """
        self.target = Path(os.path.realpath(target))
        self.overwrite = overwrite
        self.required_bytes = required_bytes
        self._partial = folders.partial_path(self.target)
        self._lock: int | None = None
        self._committed = False

    def __enter__(self) -> BundleWriter:
        folders.recover(self.target)
        _check_target(self.target, self.overwrite)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        folders.remove_abandoned(self.target)
        files.ensure_free_space(self.target.parent, self.required_bytes)
        try:
            self._partial.mkdir()
        except FileExistsError as error:
            raise ExportError(
                f"another export to {self.target} is running; wait for it, or delete {self._partial}"
            ) from error
        self._lock = folders.lock_folder(self._partial)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        written = folders.folder_bytes(self._partial)
        folders.recover(self.target)
        folders.remove_folder(self._partial)
        if self._lock is not None:
            os.close(self._lock)
        if isinstance(error, OSError) and error.errno in files.NO_SPACE and not self._committed:
            free = files.free_bytes(self.target.parent)
            raise ExportError(
                f"the disk is full: {self.target} needs more than "
                f"{files.format_bytes(max(written, self.required_bytes))}, free are {files.format_bytes(free)}; "
                "the unfinished bundle was removed and nothing else was touched"
            ) from error

    def path(self, relative: str) -> Path:
        """Where to write a file of the bundle; its folder is made.

        Raises:
            ConfigError: The path leaves the bundle or belongs to voxedge itself.
        """
        check_relative(relative)
        if relative in (MANIFEST_NAME, VERIFY_REPORT) or relative.split("/")[0] == ENGINES_FOLDER:
            raise ConfigError(f"expected a file of the export, found {relative!r}, which voxedge writes itself")
        path = self._partial / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def commit(self, draft: ManifestDraft) -> Bundle:
        """Hash every file, write the manifest and put the bundle in its place.

        Raises:
            ExportError: The draft and the files contradict each other.
        """
        records = {path.relative_to(self._partial).as_posix(): _record(path) for path in _tree(self._partial)}
        try:
            text = json.dumps(dump_manifest(draft.finish(records)), indent=1, ensure_ascii=False, allow_nan=False)
            parse_manifest(json.loads(text))
        except (ConfigError, BundleError, TypeError, ValueError) as error:
            raise ExportError(f"{self.target}: the manifest is not valid: {error}") from error
        data = text.encode("utf-8")
        if len(data) > MAX_MANIFEST_BYTES:
            raise ExportError(f"{self.target}: the manifest has {files.format_bytes(len(data))}; move data into files")
        files.write_atomically(self._partial / MANIFEST_NAME, data)
        for folder in {path.parent for path in _tree(self._partial)}:
            files.sync_path(folder)
        folders.put_in_place(self._partial, self.target)
        self._committed = True
        return Bundle.open(self.target)


def _record(path: Path) -> FileRecord:
    files.sync_path(path)
    return FileRecord(files.hash_file(path), path.stat().st_size)


def _tree(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise ExportError(f"expected regular files in a bundle, found {path}")
        if path.is_file():
            yield path


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"expected a folder for the bundle, found the file {target}")
    if target.is_mount():
        raise InputError(f"{target} is a mount point, which cannot be replaced; give a folder in it: {target}/bundle")
    found = {entry.name for entry in target.iterdir()}
    if not found:
        return
    if MANIFEST_NAME not in found:
        raise InputError(f"{target} has files and is not a bundle, so it is left alone; give a new folder")
    if not overwrite:
        raise InputError(f"{target} has a bundle already; add --force to replace it, or give a new folder")
    foreign = sorted(found - _own_names(target))
    if foreign:
        raise InputError(f"{target} has files that are not of the bundle: {foreign[:5]}; move them away first")


def _own_names(target: Path) -> set[str]:
    try:
        manifest = parse_manifest(files.read_json(target / MANIFEST_NAME, MAX_MANIFEST_BYTES))
    except BundleError:
        return {MANIFEST_NAME, *_USUAL_FOLDERS}
    return {MANIFEST_NAME, *_USUAL_FOLDERS, *(path.split("/")[0] for path in manifest.files)}
