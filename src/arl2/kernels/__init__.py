"""Pure tensor functions: no modules, no configuration. Every fast kernel has a naive twin in its folder."""
