"""Videos for people: lists of prompts worked through, so that a run that was cut goes on where it was."""
