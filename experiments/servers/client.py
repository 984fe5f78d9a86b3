"""One request to a server: streamed, timed, asked again where the server is busy, never lost."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2 as httpx

from experiments.servers.streams import Event, finish_in
from traces.errors import InputError
from traces.importers.streams import object_of

KEYS = ("GAMMALAB_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the API key; it is taken from nowhere else."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
MOST_TRIES = 5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
LONGEST_EVENT = 1 << 24  # characters; a stream without line ends must not fill the memory


class Refused(InputError):
    """The server will not answer this request however often it is asked. for_all: nor any other."""

    def __init__(self, why: str, for_all: bool = False) -> None:
        super().__init__(why)
        self.for_all = for_all


class Unanswered(Exception):
    """No whole reply came; another try may help. pause_s: as the server asked, 0 if it did not."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


@dataclasses.dataclass(frozen=True)
class Reply:
    """A whole reply. sent_unix_s; events: of the stream; tries: requests that it took."""

    sent_unix_s: float
    events: list[Event]
    tries: int


def connect(url: str, timeout_s: float, connections: int) -> httpx.AsyncClient:
    """A client of the server at `url`. timeout_s: between two bytes, and for a connection.

    Raises InputError if the URL is none.
    """
    try:
        base = httpx.URL(url.rstrip("/"))
    except httpx.InvalidURL as error:
        raise InputError(f"--url {url!r} is no URL: {error}") from None
    if base.scheme not in ("http", "https") or not base.host:
        raise InputError(f"--url {url!r} must begin with http:// or https:// and name a host")
    if not 0 < (base.port or 80) < 65536:
        raise InputError(f"--url {url!r}: there is no port {base.port}")
    key = next((os.environ[name] for name in KEYS if os.environ.get(name)), "").strip()
    if not (key.isascii() and (key.isprintable() or not key)):
        raise InputError(f"the API key in the environment ({', '.join(KEYS)}) is no line of ASCII")
    return httpx.AsyncClient(
        base_url=base,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(timeout_s, pool=None),
        limits=httpx.Limits(max_connections=connections + 1),
        # A proxy of the environment would be timed instead of the server.
        trust_env=False,
    )


async def ask(client: httpx.AsyncClient, body: dict[str, Any]) -> Reply:
    """The reply, after as many tries as it takes up to MOST_TRIES.

    Raises Refused for what another try cannot mend, Unanswered for the last failure.
    """
    for tries in range(1, MOST_TRIES + 1):
        sent = time.time()
        try:
            return Reply(sent, await _stream(client, body), tries)
        except Unanswered as failed:
            if tries == MOST_TRIES:
                raise
            pause_s = failed.pause_s or FIRST_PAUSE_S * 2 ** (tries - 1)
            await asyncio.sleep(min(LONGEST_PAUSE_S, pause_s))
    raise AssertionError


async def _stream(client: httpx.AsyncClient, body: dict[str, Any]) -> list[Event]:
    began = time.perf_counter()
    events: list[Event] = []
    try:
        async with client.stream("POST", _path(client, "/chat/completions"), json=body) as response:
            if response.status_code != 200:
                raise await _failure(response)
            async for line in _lines(response):
                at_s = time.perf_counter() - began
                if (event := _event(line, at_s)) is not None:
                    events.append(event)
    except httpx.TimeoutException as error:
        raise Unanswered(f"time-out ({type(error).__name__})") from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Unanswered(f"the connection broke: {error or type(error).__name__}") from None
    if not finish_in(events):
        raise Unanswered(f"the stream was cut after {len(events)} events")
    return events


def _path(client: httpx.AsyncClient, path: str) -> str:
    """Under /v1, whether --url ends in it or not."""
    return path if client.base_url.path.rstrip("/").endswith("/v1") else f"/v1{path}"


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """The lines of a stream as they come; bounded, httpx's own are not."""
    kept = ""
    async for text in response.aiter_text():
        *whole, kept = (kept + text).split("\n")
        if len(kept) > LONGEST_EVENT:
            raise Refused("the server's stream has no line ends; is --engine right?", True)
        for line in whole:
            yield line
    yield kept


def _event(line: str, at_s: float) -> Event | None:
    """The event of a line of server-sent events, None for blank lines, comments and [DONE]."""
    line = line.strip()
    if not line.startswith("data:"):
        if line.startswith("{"):
            raise Refused("the server answered with JSON instead of a stream", True)
        return None
    data = line.removeprefix("data:").strip()
    if data == "[DONE]":
        return None
    try:
        raw = json.loads(data)
    except (ValueError, RecursionError):
        raise Unanswered("an event of the stream was no JSON") from None
    if not isinstance(raw, dict):
        raise Unanswered("an event of the stream was no object")
    if raw.get("error"):
        raise Unanswered(f"the server broke off: {_message(raw)}")
    return Event(round(at_s, 6), raw)


async def _failure(response: httpx.Response) -> Exception:
    """The exception of a status that is not 200."""
    status = response.status_code
    try:
        raw = json.loads((await response.aread())[:65536])
    except (ValueError, RecursionError):
        raw = {}
    told = f"status {status} {response.reason_phrase}: {_message(raw)}".rstrip(": ")
    if status in BUSY:
        return Unanswered(told, _pause(response.headers.get("retry-after", "")))
    if status in (401, 403):
        told += f"; put the key into the environment as {KEYS[0]}"
    return Refused(told, for_all=status in (401, 403, 404, 405))


def _message(raw: Any) -> str:
    found = object_of(raw).get("error", raw)
    if isinstance(found, dict):
        found = found.get("message") or found
    return " ".join(str(found).split())[:200] if found else ""


def _pause(text: str) -> float:
    """Seconds of a Retry-After header; 0 for a date, which no engine sends."""
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(text)))
    except (ValueError, RecursionError):
        return 0.0


async def read_text(client: httpx.AsyncClient, path: str, root: bool = True) -> str:
    """A small document of the server, "" if it has none. root: beside /v1, not under it."""
    try:
        url = client.base_url.copy_with(path=path) if root else _path(client, path)
        response = await client.get(url)
    except httpx.HTTPError:
        return ""
    return response.text if response.status_code == 200 else ""


async def read_object(client: httpx.AsyncClient, path: str, root: bool = True) -> dict[str, Any]:
    """A small JSON document of the server, empty if it has none."""
    try:
        return object_of(json.loads(await read_text(client, path, root)))
    except (ValueError, RecursionError):
        return {}
