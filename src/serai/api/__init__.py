"""The HTTP API: routes with their access, encoders of events, errors as envelopes."""
