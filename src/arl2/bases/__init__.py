"""Base classes of models and pipelines: those of diffusers in Python, a few lines of our own in a command.

Importing diffusers takes longer than importing torch (it brings torch's compiler, transformers and accelerate), and a
command that only generates needs none of it. :mod:`arl2.bases.choice` says which are taken.
"""
