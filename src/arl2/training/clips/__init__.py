"""Clips to train on: teacher rollouts and encoded videos, in shards on disk."""
