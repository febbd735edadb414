"""Weights on disk: reading them safely, the published layouts, building a model from them, writing them back."""

from arl2.checkpoints.export import export_checkpoint as export_checkpoint
from arl2.checkpoints.load import load_transformer as load_transformer
