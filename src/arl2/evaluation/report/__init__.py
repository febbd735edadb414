"""Results of an evaluation as one HTML file, as JSON and as a Markdown table."""
