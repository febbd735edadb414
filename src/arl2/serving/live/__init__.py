"""Streams that are watched while they are made: sessions, what viewers get, and the store that survives a crash."""
