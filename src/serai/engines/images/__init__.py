"""Image pipelines: one file for each engine, and what they share. Loaded only inside a worker."""
