"""Durable jobs: stored, claimed under a lease, run, followed, finished once. DESIGN.md has the rules."""
