"""Training tasks of the shapes world."""
