"""Run by Alembic: applies the steps on the connection that `serai.storage.schema` hands over."""

from alembic import context

from serai.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    compare_type=True,
    transactional_ddl=True,
)
context.run_migrations()
