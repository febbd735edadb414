"""What a video of shapes shows: the ground-truth evaluator and its scores."""
