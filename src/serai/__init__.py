"""Serai: one self-hosted server for every generative model a product needs."""

__version__ = "0.1.0"
