"""Change files of a finished bundle, such as its voices, so that it can be verified at every moment.

In: a bundle and the files to add and to remove. Out: the bundle with its new manifest. A file is never changed in
place: what is added is written before the manifest names it, what is removed goes after the manifest forgot it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping

from voxedge.engines import files, folders
from voxedge.engines.bundle import ENGINES_FOLDER, Bundle
from voxedge.engines.errors import ConfigError, InputError, VoxedgeError
from voxedge.engines.manifest import MANIFEST_NAME, FileRecord, check_relative, dump_manifest, replace_files


def change_files(bundle: Bundle, added: Mapping[str, bytes], removed: Collection[str] = ()) -> Bundle:
    """Add and remove files of a bundle in one step.

    Args:
        bundle: Read again under a lock, so that changes of other processes are not lost.
        added: Content by relative path; a path must not be in use.
        removed: Relative paths; those that are not there are ignored.

    Raises:
        ConfigError: A path leaves the bundle, is in use, or belongs to a graph or to voxedge itself.
        InputError: Another process is changing the bundle.
        VoxedgeError: The disk is full.
    """
    for path in (*added, *removed):
        check_relative(path)
        if path == MANIFEST_NAME or path.split("/")[0] == ENGINES_FOLDER:
            raise ConfigError(f"expected a file that is not voxedge's own, found {path!r}")
    lock = folders.lock_folder(bundle.root)
    if lock is None:
        raise InputError(f"{bundle.root} is being changed by another process; try again when it is done")
    try:
        return _change(Bundle.open(bundle.root), added, set(removed))
    finally:
        os.close(lock)


def _change(bundle: Bundle, added: Mapping[str, bytes], removed: set[str]) -> Bundle:
    needed = {path for graph in bundle.manifest.graphs for path in (graph.path, graph.data)}
    taken = sorted((set(added) & set(bundle.manifest.files)) | (removed & needed))
    if taken:
        raise ConfigError(f"{bundle.root}: expected paths that are free to change, found {taken[:5]}")
    files.ensure_free_space(bundle.root, sum(map(len, added.values())), VoxedgeError)
    for path, content in added.items():
        target = bundle.path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(target, content)
    records = {path: record for path, record in bundle.manifest.files.items() if path not in removed}
    records |= {path: FileRecord(files.hash_bytes(content), len(content)) for path, content in added.items()}
    manifest = dump_manifest(replace_files(bundle.manifest, dict(sorted(records.items()))))
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    files.write_atomically(bundle.root / MANIFEST_NAME, text.encode("utf-8"))
    for path in removed & set(bundle.manifest.files):
        bundle.path(path).unlink(missing_ok=True)
    return Bundle.open(bundle.root)
