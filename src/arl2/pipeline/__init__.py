"""From names, folders and options to a loaded pipeline: components, settings, the memory planner."""
