"""How the queue of pictures stands."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import Field
from starlette.requests import Request

from serai.api.access import Routes, caller_of, parts_of
from serai.api.image_jobs import SCOPE
from serai.api.wire import Wire
from serai.auth.policy import Role
from serai.images.store import queue

routes = Routes(SCOPE)

Detailed = Annotated[bool, Query(description="The figures of each model, too.")]


class FiguresOut(Wire):
    queued: int
    running: int
    succeeded: int = Field(description=f"Of the {queue.LAST} jobs that ended last, within a day; as the next four.")
    failed: int
    cancelled: int
    mean_s: float | None = Field(description="From start to end of those that succeeded.")
    failure_rate: float | None = Field(description="0 to 1: the failed among those that succeeded or failed.")


class PlaceOut(Wire):
    job_id: str
    position: int = Field(description="1 is next.")
    eta_s: float | None = Field(description="Until it begins, by the mean of the last ones.")


class QueueOut(FiguresOut):
    max_queued: int = Field(description="Further jobs are refused with 503.")
    concurrency: int = Field(description="Jobs that run at the same time.")
    own: list[PlaceOut] = Field(description="Your jobs that wait, the next first.")
    models: dict[str, FiguresOut] | None = Field(description="The same for each model; null unless asked for.")


@routes.get("/queue", access=Role.VIEWER)
async def show_queue(request: Request, detailed: Detailed = False) -> QueueOut:
    """Show how many pictures wait and run, how the last ones went, and where your own stand."""
    parts = parts_of(request)
    concurrency = parts.settings.image_concurrency
    state = await parts.database.read(
        queue.queue_state, parts.clock, owner_id=caller_of(request).user_id, concurrency=concurrency
    )
    return QueueOut(
        **_figures(state.all),
        max_queued=parts.settings.image_max_queued,
        concurrency=concurrency,
        own=[PlaceOut.model_validate(place) for place in state.own],
        models={name: FiguresOut(**_figures(one)) for name, one in state.by_model.items()} if detailed else None,
    )


def _figures(figures: queue.Figures) -> dict[str, Any]:
    return {name: getattr(figures, name) for name in FiguresOut.model_fields}
