"""Which request a log line belongs to."""

import asyncio

import pytest

from serai.telemetry.context import accept_request_id, bind_caller, bind_request, current_caller, current_request_id


@pytest.mark.parametrize("offered", ["a", "A.b_c-9", "x" * 64, "00-4bf92f3577b34da6a3ce929d0e0e4736"])
def test_a_clean_request_id_of_the_client_is_kept(offered: str) -> None:
    """What a client and its proxies can trace stays what they sent."""
    assert accept_request_id(offered) == offered


@pytest.mark.parametrize(
    "offered",
    [None, "", "x" * 65, "a b", "a\nb", "a\n", "a\r\nSet-Cookie: x", "../a", "a/b", "http://x", "ش", "\u0661"],
)
def test_any_other_request_id_is_replaced(offered: str | None) -> None:
    """What could forge a line, a header or a path is answered with an id of ours."""
    assert accept_request_id(offered, lambda kind: f"{kind}_new") == "req_new"


def test_the_context_ends_with_its_block() -> None:
    """Outside the block nothing is known, whoever was bound inside."""
    with bind_request("outer", caller="user_1"):
        with bind_request("inner"):
            assert (current_request_id(), current_caller()) == ("inner", None)
            bind_caller("user_2")
            assert current_caller() == "user_2"
        assert (current_request_id(), current_caller()) == ("outer", "user_1")
    assert (current_request_id(), current_caller()) == (None, None)


@pytest.mark.anyio
async def test_requests_at_the_same_time_do_not_mix() -> None:
    """Each task sees its own request although they take turns."""

    async def serve(request_id: str) -> tuple[str | None, str | None]:
        with bind_request(request_id):
            await asyncio.sleep(0)
            bind_caller(f"caller of {request_id}")
            await asyncio.sleep(0)
            return current_request_id(), current_caller()

    answers = await asyncio.gather(*(serve(str(number)) for number in range(5)))
    assert answers == [(str(number), f"caller of {number}") for number in range(5)]
