"""Statistics of scores and images, and the registry of the metrics that a table holds."""
