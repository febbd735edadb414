"""``DiffusionPipeline`` and ``BaseOutput``, of diffusers or our own."""

from typing import TYPE_CHECKING

from arl2.bases.choice import takes_own

if TYPE_CHECKING or not takes_own():
    from diffusers import DiffusionPipeline as DiffusionPipeline
    from diffusers.utils import BaseOutput as BaseOutput
else:
    from arl2.bases.own import BaseOutput as BaseOutput
    from arl2.bases.own import DiffusionPipeline as DiffusionPipeline
