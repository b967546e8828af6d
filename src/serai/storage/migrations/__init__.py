"""The schema's history (Alembic): `versions/` holds one file per step."""
