"""Streams of blocks: their state, prompt changes, conditioning frames, rewind and snapshots."""
