"""Fetching weights: from a hub of models, from a folder, from an address; verified before anything can use them."""
