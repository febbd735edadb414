"""Measuring: against the published numbers, and against ground truth where there is one."""
