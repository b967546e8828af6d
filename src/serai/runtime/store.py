"""What the runtime keeps in the database: measured footprints."""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from serai.clock import Clock
from serai.runtime.model import DeviceKind, UnitId
from serai.storage.tables.runtime import footprints as table


def footprints(connection: Connection) -> dict[UnitId, int]:
    """Return the bytes of every unit that was ever measured; kinds of device of another release are left out."""
    kinds = [kind.value for kind in DeviceKind]
    rows = connection.execute(sa.select(table).where(table.c.device_kind.in_(kinds)))
    return {
        UnitId(
            weights=row.weights,
            engine=row.engine,
            quantization=row.quantization,
            device_kind=DeviceKind(row.device_kind),
        ): row.bytes
        for row in rows
    }


def put_footprints(connection: Connection, clock: Clock, measured: Mapping[UnitId, int]) -> None:
    """Enter the bytes of units, unless another server has entered more."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    for unit, size in measured.items():
        values = {"bytes": size, "measured_at": clock.now()}
        key = {
            "weights": unit.weights,
            "engine": unit.engine,
            "quantization": unit.quantization,
            "device_kind": unit.device_kind.value,
        }
        statement = insert(table).values(**key, **values)
        connection.execute(
            statement.on_conflict_do_update(index_elements=list(key), set_=values, where=table.c.bytes < size)
        )
