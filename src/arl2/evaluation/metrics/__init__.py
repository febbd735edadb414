"""What can be measured in any video without a learned model."""
