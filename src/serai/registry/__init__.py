"""The registry: models, versions, aliases and services, and the decision which version answers."""
