"""Language models: one file for each engine, and what only it needs. Loaded only inside a worker."""
