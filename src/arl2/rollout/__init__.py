"""One rollout: a generator that denoises a block, commits it to memory and yields it."""

from arl2.rollout.generator import Block as Block
from arl2.rollout.generator import generate_blocks as generate_blocks
from arl2.rollout.noise import GivenNoise as GivenNoise
from arl2.rollout.noise import SeededNoise as SeededNoise
from arl2.rollout.samplers import FewStep as FewStep
from arl2.rollout.samplers import MultiStep as MultiStep
