"""Scores of models and videos in the shapes world."""
