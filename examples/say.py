"""Speak one sentence with the built-in voice: python examples/say.py out.wav"""

import sys

from voxedge.runtime.synthesizer import Synthesizer

with Synthesizer.from_pretrained() as voice:  # or from_pretrained("my-bundle")
    audio = voice.synthesize("Hello world, good morning.", seed=7)

audio.save(sys.argv[1] if len(sys.argv) > 1 else "out.wav", overwrite=True)
print(f"{audio.duration_s:.2f} s at {audio.sample_rate} Hz, seed {audio.seed}, {audio.finish_reason}")
print(f"RTF {audio.timing.rtf:.3f} (wall / audio seconds), first audio after {audio.timing.first_audio_s:.3f} s")
