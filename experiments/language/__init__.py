"""Text: encoders, their weights, and data sets of one or two texts with a label."""
