"""Scenes of coloured shapes and their renderer."""
