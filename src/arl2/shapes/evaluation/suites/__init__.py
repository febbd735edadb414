"""The shapes world's suites of ``arl2 eval``."""
