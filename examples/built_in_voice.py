"""Make the voice that comes with the package: python examples/built_in_voice.py CHECKPOINT FOLDER

Until a trained voice is there, CHECKPOINT is the tiny end-to-end recording of the tests, whose weights are random: it
shows that the whole path works, and its sound is noise.
"""

import dataclasses
import sys
from pathlib import Path

from voxedge.export.config import ExportConfig
from voxedge.export.exporter import export_plan
from voxedge.export.systems import moe_tts

GRAPHS = ("text_expert", "speech_expert", "speech_conditioner", "dit", "vae_decoder")
NOTE = "this built-in voice is untrained: its sound is noise; export a trained checkpoint to hear speech"
LATENT_SCALE = 0.1  # random weights give latents far larger than trained ones, which would only clip

config = ExportConfig(components=GRAPHS, max_context=1024, note=NOTE, overwrite=True)
plan = moe_tts.plan(Path(sys.argv[1]), config)
vocoder = dataclasses.replace(plan.settings.vocoder, scale=LATENT_SCALE)
sampling = dataclasses.replace(plan.settings.sampling, min_tokens=40, max_tokens=250)  # seconds, not milliseconds
settings = dataclasses.replace(plan.settings, vocoder=vocoder, sampling=sampling)
bundle = export_plan(dataclasses.replace(plan, settings=settings), Path(sys.argv[2]), config)
print(f"{bundle.root}: {sum(record.size for record in bundle.manifest.files.values())} bytes")
