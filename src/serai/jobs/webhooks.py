"""Telling a client's server that a job has ended: signed, at least once, tried again for about a day.

The message was stored by the transaction that ended the job, so none is lost and none is invented.
Signature and headers follow the Standard Webhooks specification, 1.0 (standardwebhooks.com):
HMAC-SHA256 over `id.timestamp.body`.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from serai.clock import Clock
from serai.errors import OutboundRefused, SeraiError, Unavailable
from serai.ids import NewId
from serai.jobs import store
from serai.jobs.store.outbox import MAX_ATTEMPTS
from serai.storage.database import Database

SEND_S = 30.0
"""How long one receiver may take."""
LEASE_S = 120.0
POLL_S = 10.0

_log = structlog.get_logger(__name__)


class Send(Protocol):
    """POST `body` to `url`, guarded as all that leaves the server; return the status of the answer.

    Raises OutboundRefused for an address that must not be called, another SeraiError where none answers.
    """

    async def __call__(self, url: str, *, headers: Mapping[str, str], body: bytes) -> int: ...


def owner_secret(master: bytes, owner_id: str) -> str:
    """Return the secret with which `owner_id` checks signatures: `whsec_` and base64, as the standard has it.

    Derived, so that no receiver can sign for another owner and nothing has to be stored.
    """
    key = hmac.new(master, f"webhook:{owner_id}".encode(), hashlib.sha256).digest()
    return "whsec_" + base64.b64encode(key).decode()


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of a signed message. `timestamp`: seconds since the epoch."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": f"v1,{signature}",
    }


def pause_s(attempts: int, jitter: float) -> float | None:
    """Return seconds until the next try after `attempts` ≥ 1 of them: 5, 30, 180, … ≤ 8 h; None: give up."""
    if attempts >= MAX_ATTEMPTS:
        return None
    return min(28_800.0, 5.0 * 6.0 ** (attempts - 1)) * (0.75 + jitter / 2)


class Webhooks:
    """Sends what the outbox holds, from `run` until it is cancelled."""

    def __init__(
        self, database: Database, send: Send, *, master: bytes, clock: Clock, new_id: NewId, random: Callable[[], float]
    ) -> None:
        self._database = database
        self._send = send
        self._master = master
        self._clock = clock
        self._new_id = new_id
        self._random = random

    async def run(self) -> None:
        """Send as messages come up; outlives a database that goes away."""
        loop, wake = asyncio.get_running_loop(), asyncio.Event()

        def on_notice(_: str | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(wake.set)

        unsubscribe = self._database.notices.subscribe(store.WEBHOOK_TOPIC, on_notice)
        try:
            while True:
                wake.clear()
                try:
                    sent = await self.send_due()
                except Unavailable as error:
                    _log.warning("webhooks_wait", problem=error.code)
                    sent = 0
                if not sent:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(wake.wait(), POLL_S)
        finally:
            unsubscribe()

    async def send_due(self) -> int:
        """Send the messages that are due, several at a time; return how many were tried."""
        token = self._new_id("claim")
        due = await self._database.run(store.claim_deliveries, self._clock, token=token, lease_s=LEASE_S)
        await asyncio.gather(*(self._deliver(delivery) for delivery in due))
        return len(due)

    async def _deliver(self, delivery: store.Delivery) -> None:
        problem, is_final = await self._try(delivery)
        if problem is None:
            await self._database.run(store.mark_delivered, self._clock, delivery)
            return
        later = None if is_final else pause_s(delivery.attempts, self._random())
        _log.warning("webhook_not_delivered", job_id=delivery.job_id, problem=problem, again=later is not None)
        await self._database.run(store.mark_undelivered, self._clock, delivery, problem=problem, pause_s=later)

    async def _try(self, delivery: store.Delivery) -> tuple[str | None, bool]:
        """Send once; return what was wrong, or None, and whether trying again is of no use."""
        body = delivery.body.encode()
        secret = owner_secret(self._master, delivery.owner_id)
        headers = sign(secret, delivery.id, int(self._clock.now().timestamp()), body)
        try:
            async with asyncio.timeout(SEND_S):
                status = await self._send(delivery.url, headers=headers, body=body)
        except OutboundRefused as error:
            return error.code, True
        except SeraiError as error:
            return error.code, False
        except TimeoutError:
            return "no answer in time", False
        if 200 <= status < 300:
            return None, False
        return f"status {status}", status == 410
