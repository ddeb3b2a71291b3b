"""Handle audio as it is made: python examples/stream.py | aplay -t raw -f S16_LE -c 1 -r 16000"""

import sys

from voxedge.runtime.synthesizer import Synthesizer

with Synthesizer.from_pretrained() as voice:
    for chunk in voice.stream("Hello world. The red door is behind the office.", seed=7):
        sys.stdout.buffer.write(chunk.to_pcm16())  # 16-bit little-endian samples
        sys.stdout.buffer.flush()
        seconds = len(chunk.samples) / chunk.sample_rate
        print(f"chunk {chunk.index}: {seconds:.2f} s, last: {chunk.is_last}", file=sys.stderr)
