"""The shapes world: one object moving on a plain ground, often behind a wall, and an oracle to read it."""
