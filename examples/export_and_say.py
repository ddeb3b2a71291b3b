"""A checkpoint becomes a bundle, and the bundle speaks: python examples/export_and_say.py CHECKPOINT FOLDER"""

import sys
from pathlib import Path

from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint
from voxedge.runtime.synthesizer import Synthesizer

checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
bundle = export_checkpoint(checkpoint, folder / "bundle", ExportConfig(precision="fp32"))
for graph in bundle.manifest.graphs:
    print(f"{graph.name} ({graph.flavour}): {graph.precision}, opset {graph.opset}")

with Synthesizer.from_pretrained(bundle.root, backend="cpu") as voice:
    voice.synthesize("Hello from a new bundle.", seed=7).save(folder / "hello.wav")
print(folder / "hello.wav")
