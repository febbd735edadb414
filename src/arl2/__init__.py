"""arl2: streaming video generation with constant memory."""

from arl2.version import __version__ as __version__
