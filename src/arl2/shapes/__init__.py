"""The shapes world: one object moving on a plain background, often behind a wall, and its ground-truth evaluator."""
