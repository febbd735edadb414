"""Video jobs in OpenAI's format: made one after the other, kept, and resumed after a crash. No web framework."""
