"""``arl2 eval``: what is evaluated, suites of metrics, units of work that survive a kill, and summaries."""
