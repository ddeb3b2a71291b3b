"""Speak with a bundle: prompts, sampling, solvers, vocoding, streaming, audio files. Imports no torch and no onnx."""
