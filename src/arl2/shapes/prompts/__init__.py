"""Captions of scenes, and what a prompt asks for."""
