"""Flow matching as pure functions: noise levels, velocity and clean sample, samplers. No model, no state."""
