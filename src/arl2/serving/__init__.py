"""Videos and streams for people: lists of prompts that can be resumed, outputs, pacing, scripts."""
