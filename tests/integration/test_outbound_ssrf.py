"""The way out against real servers on loopback: nothing that is not allowed is ever connected to.

The front server stands for the public internet: it is reached by names that are allowed, through a
resolver of the test's own. The canary listens on every loopback address with one port and counts.
"""

import asyncio
import datetime as dt
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio.lowlevel
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serai.clock import ManualClock, SystemClock
from serai.errors import DeadlineExceeded, OutboundRefused, SeraiError, UpstreamFailed
from serai.outbound import Outbound, OutboundSecret, Resolver, UpstreamTooLarge

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
PRIVATE = "127.0.0.1"

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Stub:
    """A raw HTTP/1.1 server that answers each path with the bytes, or the coroutine, that is set for it."""

    port: int = 0
    connections: int = 0
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    """Request line, headers by lower-case name, body."""
    answers: dict[str, bytes | Answer] = field(default_factory=dict)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value for name, _, value in (entry.partition(": ") for entry in fields)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                self.requests.append((line, headers, body))
                answer = self.answers.get(line.split()[1], reply(b"ok"))
                if isinstance(answer, bytes):
                    writer.write(answer)
                else:
                    await answer(writer)
                await writer.drain()
                if b"connection: close" in (answer if isinstance(answer, bytes) else b"connection: close"):
                    break
            writer.close()
            await writer.wait_closed()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()


def reply(body: bytes = b"", *headers: str, status: str = "200 OK", length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: int = 302) -> bytes:
    return reply(b"", f"location: {location}", status=f"{status} Found")


@asynccontextmanager
async def serving(
    *addresses: str, port: int = 0, tls: ssl.SSLContext | None = None, stub: Stub | None = None
) -> AsyncIterator[Stub]:
    """Serve a stub on `addresses`, all with the same port, until the block ends."""
    stub = stub or Stub()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(stub.serve(reader, writer))
        tasks.add(task)

    async with AsyncExitStack() as stack:
        for address in addresses:
            server = await asyncio.start_server(accept, address, stub.port or port, ssl=tls)
            stack.callback(server.close)
            stub.port = server.sockets[0].getsockname()[1]
        yield stub
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A transport lets go of its socket one turn of the loop after it was told to.
        await anyio.lowlevel.checkpoint()


@pytest.fixture
async def canary() -> AsyncIterator[Stub]:
    async with serving(PRIVATE, "127.0.0.2", "::1") as stub:
        yield stub


@pytest.fixture
async def front() -> AsyncIterator[Stub]:
    async with serving(PRIVATE) as stub:
        yield stub


def answering(**addresses: Sequence[str]) -> Resolver:
    """Return a resolver of fixed names; '_' stands for '.' in them."""
    table = {name.replace("_", "."): found for name, found in addresses.items()}

    async def resolve(host: str) -> Sequence[str]:
        if host not in table:
            raise OSError("name not known")
        return table[host]

    return resolve


def client(
    *allow: str, resolve: Resolver | None = None, timeout_s: float = 20, tls: ssl.SSLContext | None = None
) -> Outbound:
    known = resolve or answering(front_test=[PRIVATE], second_test=[PRIVATE])
    return Outbound(clock=SystemClock(), allow=allow, resolve=known, timeout_s=timeout_s, ssl_context=tls)


SPECIAL_FORMS = [
    "http://127.0.0.1:{port}/", "http://127.0.0.2:{port}/", "http://127.1:{port}/", "http://2130706433:{port}/",
    "http://0x7f000001:{port}/", "http://0x7f.0.0.1:{port}/", "http://0177.0.0.1:{port}/", "http://017700000001:{port}/",
    "http://0.0.0.0:{port}/", "http://0:{port}/", "http://[::]:{port}/", "http://[::1]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/", "http://[::ffff:7f00:1]:{port}/", "http://[::127.0.0.1]:{port}/",
    "http://[64:ff9b::7f00:1]:{port}/", "http://[2002:7f00:1::]:{port}/", "http://[::1%25lo]:{port}/",
    "http://localhost:{port}/", "http://localhost.:{port}/", "http://LOCALHOST:{port}/", "http://a.localhost:{port}/",
    "http://127.0.0.1.:{port}/", "http://user:pw@127.0.0.1:{port}/", "http://front.test@127.0.0.1:{port}/",
    "http://front.test\\@127.0.0.1:{port}/", "http://127.0.0.1:{port}\\@front.test/", "http://127.0.0.1:{port}#@front.test/",
    "http://127。0。0。1:{port}/", "http://①②⑦.⓪.⓪.①:{port}/", "http://１２７.０.０.１:{port}/",
    "http://%31%32%37.0.0.1:{port}/", " http://127.0.0.1:{port}/", "http://127.0.0.1:{port}/\t", "//127.0.0.1:{port}/",
    "http:/\\127.0.0.1:{port}/", "https://127.0.0.1:{port}/",
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://100.64.0.1/", "http://10.0.0.1/",
    "http://172.16.0.1/", "http://192.168.0.1/", "http://168.63.129.16/", "http://224.0.0.1/", "http://255.255.255.255/",
    "http://front.test:0/", "http://front.test:99999/", "http:///", "http://",
    "file:///etc/passwd", "gopher://127.0.0.1:{port}/_GET", "data:text/plain,x", "data:;base64," + "QUFB" * 100_000,
    "ftp://127.0.0.1:{port}/", "dict://127.0.0.1:{port}/", "ws://127.0.0.1:{port}/", "javascript:alert(1)",
]  # fmt: skip


@pytest.mark.parametrize("form", SPECIAL_FORMS, ids=lambda form: form[:50])
async def test_no_special_form_is_connected_to(form: str, canary: Stub) -> None:
    """Every spelling of a private place, and every other scheme, is refused before anything is sent."""
    url = form.format(port=canary.port)
    async with Outbound(clock=SystemClock()) as out:
        for follow in (True, False):
            with pytest.raises(OutboundRefused) as refused:
                await out.request("GET", url, follow_redirects=follow)
    assert canary.connections == 0
    assert "169.254" not in str(refused.value)
    assert "127." not in str(refused.value)


@pytest.mark.parametrize("form", SPECIAL_FORMS, ids=lambda form: form[:50])
@pytest.mark.parametrize("status", [301, 307])
async def test_no_redirect_leads_to_a_special_form(form: str, status: int, front: Stub, canary: Stub) -> None:
    """Each hop passes the same guard: a public server cannot send the client to a private place."""
    # The longest forms are cut: a head of 100 KB would fail before it is looked at.
    front.answers["/go"] = redirect(form.format(port=canary.port)[:9000], status)
    async with client("front.test") as out:
        with pytest.raises(OutboundRefused) as refused:
            await out.request("GET", f"http://front.test:{front.port}/go")
    assert (canary.connections, front.connections, len(front.requests)) == (0, 1, 1)
    assert "127." not in str(refused.value)


async def test_the_canary_counts_when_it_is_allowed(front: Stub, canary: Stub) -> None:
    """The canary is alive: with its address allowed, a direct call and a redirect both reach it."""
    front.answers["/go"] = redirect(f"http://127.0.0.2:{canary.port}/")
    async with client("front.test", "127.0.0.2", "::1") as out:
        for url in (f"http://front.test:{front.port}/go", f"http://[::1]:{canary.port}/"):
            assert (await out.request("GET", url)).body == b"ok"
    assert canary.connections == 2


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.0.0.2", "::1", "0.0.0.0", "::", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "10.0.0.1", "fe80::1%lo"],
)
async def test_no_name_leads_to_a_private_address(address: str, canary: Stub) -> None:
    """A name is refused when any one of its addresses is private, whatever the others are."""
    resolve = answering(evil_test=[address], mixed_test=["8.8.8.8", address])
    async with client("other.test", resolve=resolve) as out:
        for name in ("evil.test", "mixed.test"):
            with pytest.raises(OutboundRefused, match="public address"):
                await out.request("GET", f"http://{name}:{canary.port}/")
    assert canary.connections == 0


async def test_the_machines_own_resolver_is_guarded_too(canary: Stub) -> None:
    """With the real resolver, this machine's own name for loopback is refused by its address."""
    async with Outbound(clock=SystemClock(), allow=["localhost"]) as out:
        assert (await out.request("GET", f"http://localhost:{canary.port}/")).body == b"ok"
    async with Outbound(clock=SystemClock()) as out:
        with pytest.raises(SeraiError):
            await out.request("GET", f"http://ip6-localhost:{canary.port}/")
    assert canary.connections == 1


class Rebinding:
    """A resolver whose answer changes from one question to the next."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.questions = 0

    async def __call__(self, host: str) -> Sequence[str]:
        self.questions += 1
        return [self.answers[min(self.questions, len(self.answers)) - 1]]


async def test_rebinding_changes_nothing() -> None:
    """The address that was checked is the one that is connected to; the next connection is checked anew."""
    resolve = Rebinding("127.0.0.1", "127.0.0.2")
    async with serving("127.0.0.1") as public, serving("127.0.0.2", port=public.port) as canary:
        public.answers["/"] = reply(b"public", "connection: close")
        # 127.0.0.1 stands for a public address here; 127.0.0.2 is private.
        async with client("127.0.0.1/32", resolve=resolve) as out:
            assert (await out.request("GET", f"http://evil.test:{public.port}/")).body == b"public"
            assert resolve.questions == 1
            with pytest.raises(OutboundRefused):
                await out.request("GET", f"http://evil.test:{public.port}/")
        assert (resolve.questions, public.connections, canary.connections) == (2, 1, 0)


async def test_rebinding_between_the_hops_changes_nothing() -> None:
    """A redirect to the same name is resolved and checked again."""
    resolve = Rebinding("127.0.0.1", "127.0.0.2")
    async with serving("127.0.0.1") as public, serving("127.0.0.2", port=public.port) as canary:
        public.answers["/"] = redirect("/again")
        async with client("127.0.0.1/32", resolve=resolve) as out:
            with pytest.raises(OutboundRefused):
                await out.request("GET", f"http://evil.test:{public.port}/")
        assert (public.connections, canary.connections) == (1, 0)


async def test_the_next_address_is_tried_when_one_does_not_answer(front: Stub) -> None:
    """Of several checked addresses the first that connects is used."""
    async with client("127.0.0.0/8", resolve=answering(front_test=["127.0.0.9", PRIVATE])) as out:
        assert (await out.request("GET", f"http://front.test:{front.port}/")).body == b"ok"


async def test_the_environment_is_not_asked(
    front: Stub, canary: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither proxies nor passwords are taken from the environment, and no cookie is kept."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login planted password planted-canary\n")
    monkeypatch.setenv("NETRC", str(netrc))
    front.answers["/"] = reply(b"ok", "set-cookie: session=planted-canary")
    async with client("front.test") as out:
        for _ in range(2):
            await out.request("GET", f"http://front.test:{front.port}/")
    assert canary.connections == 0
    for _, headers, _ in front.requests:
        assert set(headers) == {"host", "accept", "accept-encoding", "user-agent"}


def planted(*origins: str, header: str = "Authorization", prefix: str = "Bearer ") -> OutboundSecret:
    return OutboundSecret(
        name="upstream", value="planted-canary", header=header, prefix=prefix, origins=frozenset(origins)
    )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_credentials_do_not_follow_to_a_second_origin(status: int, front: Stub, canary: Stub) -> None:
    """The first server gets every credential, the one that it redirects to gets none."""
    origin = f"http://front.test:{front.port}"
    front.answers["/here"] = redirect("/go", status)
    front.answers["/go"] = redirect(f"http://second.test:{canary.port}/", status)
    credentials = {"X-Api-Key": "planted-canary", "Cookie": "s=planted-canary", "X-Own": "planted-canary"}
    async with client("front.test", "second.test") as out:
        got = await out.request("POST", f"{origin}/here", headers=credentials, json={}, secret=planted(origin))
    assert got.url == f"http://second.test:{canary.port}/"
    for _, headers, _ in front.requests:
        assert headers["authorization"] == "Bearer planted-canary"
        assert headers["cookie"] == "s=planted-canary"
    (line, headers, body) = canary.requests[0]
    assert "planted-canary" not in f"{line} {headers}"
    assert (line.split()[0], body) == (("POST", b"{}") if status in (307, 308) else ("GET", b""))


async def test_a_secret_is_not_sent_to_a_foreign_origin(front: Stub) -> None:
    """Before anything is sent the origin is compared: scheme, host and port."""
    async with client("front.test", "second.test") as out:
        for origin in ("http://second.test", f"https://front.test:{front.port}", f"http://front.test:{front.port + 1}"):
            with pytest.raises(OutboundRefused) as refused:
                await out.request("GET", f"http://front.test:{front.port}/", secret=planted(origin))
            assert "planted-canary" not in str(refused.value)
    assert front.connections == 0


async def test_redirects_are_counted(front: Stub) -> None:
    """Five redirects are followed, the sixth ends the call; without following, the redirect is the answer."""
    for step in range(6):
        front.answers[f"/{step}"] = redirect(f"/{step + 1}")
    front.answers["/loop"] = redirect("/loop")
    async with client("front.test") as out:
        base = f"http://front.test:{front.port}"
        assert (await out.request("GET", f"{base}/1")).url == f"{base}/6"
        for path in ("/0", "/loop"):
            with pytest.raises(UpstreamFailed, match="more than 5"):
                await out.request("GET", base + path)
        raw = await out.request("GET", f"{base}/loop", follow_redirects=False)
    assert (raw.status, raw.headers["location"]) == (302, "/loop")


def dripping(first: bytes, drop: bytes) -> Answer:
    """Send `first`, then `drop` every few milliseconds for ever: no single read is ever slow."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        while not writer.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(0.01)

    return answer


async def silent(writer: asyncio.StreamWriter) -> None:
    await writer.drain()
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "answer",
    [
        silent,
        dripping(b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n"),
        dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        dripping(reply(length=10**9), b"x"),
        dripping(
            reply(b"", "content-encoding: gzip", length=10**9) + gzip.compress(b"x")[:10], b"\x00\x00\x00\xff\xff"
        ),
    ],
    ids=["silent", "slow-header", "endless-informational", "slow-body", "slow-empty-blocks"],
)
async def test_the_deadline_covers_the_whole_call(answer: Answer, front: Stub) -> None:
    """A server that keeps sending a little never outlives the deadline of the call."""
    front.answers["/"] = answer
    async with client("front.test") as out:
        with pytest.raises(DeadlineExceeded, match=r"front\.test did not answer in time"):
            await out.request("GET", f"http://front.test:{front.port}/", timeout_s=0.25)


async def test_the_deadline_covers_dns_and_the_handshake(front: Stub) -> None:
    """Waiting for a name, or for TLS on a port that does not speak it, is part of the call."""

    async def never(host: str) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    async with client("front.test", resolve=never, timeout_s=0.1) as out:
        with pytest.raises(DeadlineExceeded):
            await out.request("GET", f"http://front.test:{front.port}/")
    async with client("front.test", timeout_s=0.1) as out:
        with pytest.raises(DeadlineExceeded):
            await out.request("GET", f"https://front.test:{front.port}/")


async def test_the_deadline_waits_for_the_readers_own_work(front: Stub) -> None:
    """While the caller is busy nothing is interrupted; the next piece after the deadline is refused."""
    clock = ManualClock()
    front.answers["/"] = dripping(reply(length=10**9), b"x")
    url = f"http://127.0.0.1:{front.port}/"
    async with Outbound(clock=clock, allow=["127.0.0.1"], timeout_s=3600) as out, out.stream("GET", url) as got:
        pieces = got.aiter_bytes()
        assert (await anext(pieces)).strip(b"x") == b""
        clock.advance(3601)
        with pytest.raises(DeadlineExceeded):
            await anext(pieces)


@pytest.mark.parametrize("kind", ["oversized", "endless", "bomb"])
async def test_bodies_are_cut_at_the_bound(kind: str, front: Stub) -> None:
    """Too long a body, an endless one and a gzip bomb all end at the bound, counted after decoding."""
    bomb = gzip.compress(bytes(32 * MIB))
    front.answers["/"] = {
        "oversized": reply(bytes(MIB + 1)),
        "endless": dripping(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"8000\r\n" + bytes(0x8000) + b"\r\n"
        ),
        "bomb": reply(bomb, "content-encoding: gzip"),
    }[kind]
    out_bytes = 0
    async with client("front.test") as out:
        with pytest.raises(UpstreamTooLarge) as refused:
            async with out.stream("GET", f"http://front.test:{front.port}/", max_bytes=MIB) as got:
                async for piece in got.aiter_bytes():
                    out_bytes += len(piece)
        assert out_bytes <= MIB
        assert refused.value.code == "UPSTREAM_TOO_LARGE"
        with pytest.raises(UpstreamTooLarge):
            await out.request("GET", f"http://front.test:{front.port}/", max_bytes=MIB)


async def test_others_run_while_a_body_is_decoded(front: Stub) -> None:
    """A few compressed kilobytes that become megabytes do not hold the event loop."""
    front.answers["/"] = reply(gzip.compress(bytes(4 * MIB)), "content-encoding: gzip")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with client("front.test") as out, out.stream("GET", f"http://front.test:{front.port}/") as got:
        other = asyncio.get_running_loop().create_task(count())
        pieces = got.aiter_bytes()
        await anext(pieces)
        turns = 0
        assert len([piece async for piece in pieces]) == 63
        other.cancel()
    assert turns >= 63


async def test_headers_are_bounded(front: Stub) -> None:
    """A head of megabytes is cut, however fast it comes."""
    front.answers["/"] = dripping(b"HTTP/1.1 200 OK\r\n", b"x-a: " + b"b" * 60_000 + b"\r\n")
    async with client("front.test") as out:
        with pytest.raises(UpstreamFailed):
            await out.request("GET", f"http://front.test:{front.port}/")


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"SSH-2.0-OpenSSH\r\n\r\n", reply(b"short", "connection: close", length=10),
        reply(b"not gzip", "content-encoding: gzip"), reply(b"x", "content-encoding: br"),
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
    ],
)  # fmt: skip
async def test_nonsense_is_a_failure_of_the_other_server(answer: bytes, front: Stub) -> None:
    """What is not HTTP, is cut off or was not asked for fails with the host that the caller named, no address."""

    async def once(writer: asyncio.StreamWriter) -> None:
        writer.write(answer)

    front.answers["/"] = once
    async with client("front.test") as out:
        with pytest.raises(UpstreamFailed) as failed:
            await out.request("GET", f"http://front.test:{front.port}/")
    assert PRIVATE not in failed.value.message


async def test_a_refused_connection_is_a_failure_of_the_other_server(front: Stub) -> None:
    """A port where nobody listens and a name that nobody knows are failures, not refusals."""
    async with client("front.test", "gone.test", "127.0.0.0/8") as out:
        for url in (f"http://127.0.0.3:{front.port}/", "http://gone.test/"):
            with pytest.raises(UpstreamFailed, match="the connection failed"):
                await out.request("GET", url)


async def test_an_answer_is_given_whatever_its_status(front: Stub) -> None:
    """Status, joined headers and decoded body come back; connections that are done are used again."""
    front.answers["/"] = reply(
        gzip.compress(b"teapot"), "content-encoding: gzip", "X-A: 1", "x-a: 2", status="418 Teapot"
    )
    async with client("front.test") as out:
        for _ in range(3):
            got = await out.request("PUT", f"http://front.test:{front.port}/", content=b"x", headers={"Accept": "a/b"})
    assert (got.status, got.headers["x-a"], got.body) == (418, "1, 2", b"teapot")
    assert front.connections == 1
    assert front.requests[0][1]["accept"] == "a/b"
    assert front.requests[0][2] == b"x"


async def test_a_body_is_read_once_and_an_unread_one_is_dropped(front: Stub) -> None:
    """Leaving the block early closes the connection; reading twice is an error."""
    front.answers["/"] = dripping(reply(length=10**9), b"x" * 1000)
    front.answers["/small"] = reply(b"small")
    async with client("front.test") as out:
        async with out.stream("GET", f"http://front.test:{front.port}/") as got:
            await anext(got.aiter_bytes())
        async with out.stream("GET", f"http://front.test:{front.port}/small") as got:
            assert [piece async for piece in got.aiter_bytes()] == [b"small"]
            with pytest.raises(RuntimeError, match="read before"):
                await anext(got.aiter_bytes())
    assert front.connections == 2


def certificate(
    name: str, issuer: tuple[x509.Name, ec.EllipticCurvePrivateKey] | None, alternative: x509.GeneralName
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return a certificate for one day, self-signed as an authority where there is no issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signer, signing_key = issuer or (subject, key)
    now = SystemClock().now()
    builder = x509.CertificateBuilder(signer, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - dt.timedelta(hours=1))
    builder = builder.not_valid_after(now + dt.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    return builder.sign(signing_key, hashes.SHA256()), key


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the server's context, with a certificate for model.test, and the client's that trusts its authority."""
    folder = tmp_path_factory.mktemp("tls")
    authority, authority_key = certificate("Test CA", None, x509.DNSName("ca.test"))
    leaf, key = certificate("model.test", (authority.subject, authority_key), x509.DNSName("model.test"))
    pem, private = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "leaf.pem").write_bytes(
        key.private_bytes(pem, private, serialization.NoEncryption()) + leaf.public_bytes(pem)
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "leaf.pem")
    return server, ssl.create_default_context(cadata=authority.public_bytes(pem).decode())


async def test_tls_is_checked_by_name_on_the_pinned_address(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """The certificate must be for the host of the URL, not for the address; SNI carries the name."""
    server, trusting = tls
    named: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: named.append(name)
    resolve = answering(model_test=[PRIVATE], other_test=[PRIVATE])
    async with serving(PRIVATE, tls=server) as stub:
        async with client("model.test", "other.test", PRIVATE, resolve=resolve, tls=trusting) as out:
            url = f"https://model.test:{stub.port}/x"
            assert (await out.request("GET", url, secret=planted(url.removesuffix("/x")))).body == b"ok"
            for host in ("other.test", PRIVATE):
                with pytest.raises(UpstreamFailed, match="certificate was not accepted"):
                    await out.request("GET", f"https://{host}:{stub.port}/")
        async with client("model.test", resolve=resolve) as untrusting:
            with pytest.raises(UpstreamFailed, match="certificate was not accepted"):
                await untrusting.request("GET", url)
        assert [line for line, _, _ in stub.requests] == ["GET /x HTTP/1.1"]
    assert named[:2] == ["model.test", "other.test"]


async def test_https_does_not_fall_back_to_http(tls: tuple[ssl.SSLContext, ssl.SSLContext], canary: Stub) -> None:
    """A redirect from https to http is refused even to the same allowed host."""
    server, trusting = tls
    async with serving(PRIVATE, tls=server) as stub:
        stub.answers["/"] = redirect(f"http://model.test:{canary.port}/")
        async with client("model.test", resolve=answering(model_test=[PRIVATE]), tls=trusting) as out:
            with pytest.raises(OutboundRefused, match="https to http"):
                await out.request("GET", f"https://model.test:{stub.port}/")
    assert canary.connections == 0
