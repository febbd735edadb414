"""Flow matching as pure functions: noise schedule, velocity and clean sample, samplers. No model, no state."""
