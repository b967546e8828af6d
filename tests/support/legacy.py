"""Databases of the service that this one replaces: its tables before and after it learned of versions."""

from pathlib import Path
from typing import Any

import sqlalchemy as sa

MODELS_BEFORE = """
CREATE TABLE models (
    id {uuid} PRIMARY KEY,
    model_id VARCHAR(255) NOT NULL UNIQUE,
    version VARCHAR(100) NOT NULL,
    submitted_on BIGINT NOT NULL,
    updated_on BIGINT,
    name VARCHAR(255) NOT NULL,
    description TEXT,
    ref_url VARCHAR(500),
    task {json} NOT NULL,
    languages {json},
    license VARCHAR(255),
    domain {json},
    inference_endpoint {json},
    benchmarks {json},
    submitter {json},
    is_published BOOLEAN NOT NULL DEFAULT {false},
    published_at BIGINT,
    unpublished_at BIGINT,
    created_at TIMESTAMP,
    updated_at TIMESTAMP
)"""

SERVICES_BEFORE = """
CREATE TABLE services (
    id {uuid} PRIMARY KEY,
    service_id VARCHAR(255) NOT NULL UNIQUE,
    name VARCHAR(255) NOT NULL,
    service_description TEXT,
    hardware_description TEXT,
    published_on BIGINT NOT NULL,
    model_id VARCHAR(255) NOT NULL REFERENCES models (model_id),
    endpoint VARCHAR(500) NOT NULL,
    api_key VARCHAR(255),
    health_status {json},
    is_published BOOLEAN NOT NULL DEFAULT {false},
    created_at TIMESTAMP,
    updated_at TIMESTAMP
)"""

# As its migration leaves them: model_id is unique only with the version, and services name a version too.
MODELS_AFTER = MODELS_BEFORE.replace("model_id VARCHAR(255) NOT NULL UNIQUE", "model_id VARCHAR(255) NOT NULL").replace(
    "updated_at TIMESTAMP\n",
    "updated_at TIMESTAMP,\n    version_status VARCHAR(50) DEFAULT 'active',\n    release_notes TEXT,\n"
    "    is_immutable BOOLEAN DEFAULT {false},\n    UNIQUE (model_id, version)\n",
)
SERVICES_AFTER = SERVICES_BEFORE.replace(" REFERENCES models (model_id)", "").replace(
    "updated_at TIMESTAMP\n",
    "updated_at TIMESTAMP,\n    model_version VARCHAR(100) NOT NULL,\n    version_updated_at BIGINT\n",
)
INDEXES_AFTER = (
    "CREATE INDEX idx_model_id_version ON models (model_id, version)",
    "CREATE INDEX idx_model_id_version_status ON models (model_id, version_status)",
    "CREATE INDEX idx_service_model_version ON services (model_id, model_version)",
)


class LegacyDatabase:
    """One such database; `source` is what names it on the command line."""

    def __init__(self, target: Path | str, *, versions: bool) -> None:
        self.source = str(target)
        url = f"sqlite:///{target}" if isinstance(target, Path) else target.replace("://", "+psycopg://")
        self._engine = sa.create_engine(url, poolclass=sa.pool.NullPool)
        is_sqlite = self._engine.dialect.name == "sqlite"
        types = (
            {"uuid": "TEXT", "json": "JSON", "false": "0"}
            if is_sqlite
            else {"uuid": "UUID", "json": "JSONB", "false": "FALSE"}
        )
        tables = (MODELS_AFTER, SERVICES_AFTER, *INDEXES_AFTER) if versions else (MODELS_BEFORE, SERVICES_BEFORE)
        self._run(*(ddl.format(**types) for ddl in tables))
        metadata = sa.MetaData()
        metadata.reflect(self._engine)
        self._models, self._services = metadata.tables["models"], metadata.tables["services"]
        self._rows = 0

    def model(self, model_id: str, version: str, **columns: Any) -> None:
        """Insert a model; columns that are not given have something usual."""
        usual = {"submitted_on": 1_700_000_000, "name": model_id.title(), "task": {"type": "llm"}}
        self._insert(self._models, {"model_id": model_id, "version": version, **usual, **columns})

    def service(self, service_id: str, model_id: str, **columns: Any) -> None:
        """Insert a service."""
        usual = {"published_on": 1_700_000_500, "name": service_id.title(), "endpoint": "http://triton:8000"}
        self._insert(self._services, {"service_id": service_id, "model_id": model_id, **usual, **columns})

    def execute(self, statement: str) -> None:
        """Run a statement that a test is about."""
        self._run(statement)

    def _insert(self, table: sa.Table, values: dict[str, Any]) -> None:
        self._rows += 1
        values["id"] = f"00000000-0000-0000-0000-{self._rows:012d}"
        with self._engine.begin() as connection:
            connection.execute(sa.insert(table).values(values))

    def _run(self, *statements: str) -> None:
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))
