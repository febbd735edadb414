"""The causal Wan transformer, its presets and what it costs."""
