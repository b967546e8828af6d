"""Writes that arrive at the same time share one transaction, and so one wait for the disk.

A commit waits for the disk; everything else about a small write takes a fraction of that. While one
group commits, the next one gathers, so the busier the server, the larger its groups.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

from serai.errors import DatabaseUnavailable
from serai.storage.database import Connection, Database

P = ParamSpec("P")
R = TypeVar("R")

GROUP = 64

_Call = Callable[[Connection], Any]
_Entry = tuple[_Call, "asyncio.Future[Any]"]


class GroupedWrites:
    """`run` as `Database.run` does; each caller gets its own result or error. Used on one event loop.

    If one function of a group raises, the group leaves nothing and each is run in a transaction of its
    own. So, as for `Database.run`, a function may run twice and must touch nothing but its connection.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[_Entry] = []
        self._task: asyncio.Task[None] | None = None

    async def run(self, function: Callable[Concatenate[Connection, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function(connection, …)` and return when it is committed."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((lambda connection: function(connection, *args, **kwargs), future))
        if self._task is None:
            self._task = asyncio.create_task(self._write_all(), name="grouped writes")
        return await future

    async def _write_all(self) -> None:
        while self._waiting:
            group, self._waiting = self._waiting[:GROUP], self._waiting[GROUP:]
            if len(group) == 1 or not await self._write(group):
                for call, future in group:
                    await self._write_one(call, future)
        self._task = None

    async def _write(self, group: list[_Entry]) -> bool:
        """Write the group in one transaction; return False where each has to be tried alone."""
        try:
            results = await self._database.run(lambda connection: [call(connection) for call, _ in group])
        except DatabaseUnavailable as error:
            for _, future in group:
                _settle(future, error=error)
        except Exception:  # noqa: BLE001 - whose error it is shows when each is tried alone
            return False
        else:
            for (_, future), result in zip(group, results, strict=True):
                _settle(future, result)
        return True

    async def _write_one(self, call: _Call, future: "asyncio.Future[Any]") -> None:
        try:
            result = await self._database.run(call)
        except Exception as error:  # noqa: BLE001 - the caller's
            _settle(future, error=error)
        else:
            _settle(future, result)


def _settle(future: "asyncio.Future[Any]", result: Any = None, *, error: Exception | None = None) -> None:
    if future.done():  # the caller was cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
