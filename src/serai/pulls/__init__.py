"""Pulls: weights fetched, verified, converted where an engine needs it, and registered as a version."""
