"""Check that a Jetson can install voxedge without a compiler.

In: the requirements of the installed voxedge. Out: exit code 0 when pip finds an aarch64 wheel of every hard dependency
and of the `ort` extra, their own dependencies included, for the Pythons of JetPack 6 and 7. Downloads metadata at most.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile

from packaging.requirements import Requirement

PYTHONS = ("3.10", "3.12")
# A glibc takes wheels of every older one; JetPack 6 (Ubuntu 22.04) has glibc 2.35.
PLATFORMS = ("manylinux_2_34_aarch64", "manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64",
             "manylinux2014_aarch64")  # fmt: skip


def requirements(extra: str) -> list[str]:
    """Hard dependencies and those of one extra, without their markers."""
    found = []
    for text in importlib.metadata.requires("voxedge") or []:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra, "platform_machine": "aarch64"}):
            found.append(f"{requirement.name}{requirement.specifier}")
    return found


def check(python: str, wanted: list[str]) -> int:
    """Let pip resolve `wanted` for one Python on aarch64; its exit code."""
    with tempfile.TemporaryDirectory() as target:
        command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed", "--target", target]
        command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
        command += [option for platform in PLATFORMS for option in ("--platform", platform)]
        code = subprocess.run([*command, *wanted], check=False).returncode
    print(f"aarch64, Python {python}, {', '.join(wanted)}: {'all there' if code == 0 else 'MISSING'}")
    return code


def main() -> int:
    """Check each Python; 1 when a wheel is missing."""
    wanted = requirements("ort")
    return 1 if any([check(python, wanted) for python in PYTHONS]) else 0


if __name__ == "__main__":
    sys.exit(main())
