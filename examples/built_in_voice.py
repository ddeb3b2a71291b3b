"""Export the voice that comes with the package: python examples/built_in_voice.py CHECKPOINT FOLDER [PRECISION]

CHECKPOINT is what `python -m examples.demo_voice.build` leaves; the shipped voice's is examples/demo_voice/checkpoint.
The same as `voxedge export CHECKPOINT -o FOLDER --precision int8-weight --max-context 512 --max-seconds 20 --note ...`.
"""

import sys
from pathlib import Path

from voxedge.calibration.quantise.config import QuantiseConfig
from voxedge.export.config import ExportConfig
from voxedge.export.systems import export_checkpoint

NOTE = "a small demonstration voice of English, trained on synthetic speech; see: voxedge say --list-voices"

precision = sys.argv[3] if len(sys.argv) > 3 else "int8-weight"
rounded = None if precision in ("fp32", "fp16") else QuantiseConfig(precision)
plain = "fp16" if precision == "fp16" else "fp32"
config = ExportConfig(plain, quantise=rounded, max_context=512, max_seconds=20.0, note=NOTE, overwrite=True)
bundle = export_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), config)
print(f"{bundle.root}: {sum(record.size for record in bundle.manifest.files.values())} bytes")
