"""Pixels: codecs between video and latents, and reading and writing video files."""
