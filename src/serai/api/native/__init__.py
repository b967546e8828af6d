"""The native API, one module per subject; each holds its wire types and a `routes` list."""
