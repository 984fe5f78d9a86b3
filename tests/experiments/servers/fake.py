"""A server that answers as llama.cpp, vLLM or SGLang do, from a world that is known.

    python fake.py --engine llama.cpp --port 8080 --spec-type draft-simple --spec-draft-n-max 3

What its drafter would get right at every position of a reply follows from the prompt; seconds of a
round are made up, PLAIN_S or DRAFT_S + length x STEP_S, and told on the server's own clock where
the engine tells them. --trouble names a fault.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PLAIN_S, DRAFT_S, STEP_S = 0.020, 0.026, 0.003
PROMPT_TOKENS = 11


def agreements(prompt: str, tokens: int) -> list[bool]:
    """Would the draft's token be right at each position of the reply? In runs, as text has them."""
    seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    drawn = random.Random(seed)
    easy, found = True, []
    for _ in range(tokens):
        easy = easy if drawn.random() < 0.9 else not easy
        found.append(drawn.random() < (0.92 if easy else 0.35))
    return found


def rounds_of(prompt: str, tokens: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Drafted, accepted and emitted tokens of every round behind the first token."""
    right = agreements(prompt, tokens)
    at = 1
    while at < tokens:
        drafted = min(length, tokens - at - 1)
        accepted = 0
        while accepted < drafted and right[at + accepted]:
            accepted += 1
        yield drafted, accepted, accepted + 1
        at += accepted + 1


class Handler(BaseHTTPRequestHandler):
    """One request. The server has `args`, `counts`, `asked`."""

    protocol_version = "HTTP/1.0"

    def log_message(self, *words: Any) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        """Health, models, counters."""
        server: Any = self.server
        names = {"two-models": ["one", "two"]}.get(server.args.trouble, ["fake"])
        if self.path == "/health":
            self._send(200, b'{"status": "ok"}')
        elif self.path == "/v1/models":
            self._send(200, json.dumps({"data": [{"id": name} for name in names]}).encode())
        elif self.path == "/version":
            self._send(200, b'{"version": "0.0-fake"}')
        elif self.path == "/metrics":
            lines = [f"llamacpp:spec_decode_{k}_total {v}" for k, v in server.counts.items()]
            self._send(200, "\n".join(lines).encode(), "text/plain")
        else:
            self._send(404, b"{}")

    def do_POST(self) -> None:
        """A reply, streamed."""
        server: Any = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.asked += 1
            number = server.asked
        if server.args.log:
            with Path(server.args.log).open("a") as log:
                log.write(json.dumps(body["messages"]) + "\n")
        trouble = server.args.trouble
        if trouble == "busy" and number <= 2:
            self._send(429, b'{"error": {"message": "slow down"}}', extra={"Retry-After": "0.01"})
            return
        if trouble == "unavailable":
            self._send(503, b'{"error": {"message": "loading"}}')
            return
        if trouble == "key" and self.headers.get("authorization") != "Bearer secret":
            self._send(401, b'{"error": {"message": "no key"}}')
            return
        if trouble == "too-long":
            self._send(400, b'{"error": {"message": "the prompt is too long"}}')
            return
        if trouble == "dies" and number == 4:
            os._exit(1)
        if trouble == "silent":
            server.closing.wait(5.0)
        lines = list(events(server, body))
        if trouble == "cut" and number <= 2:
            lines = lines[: len(lines) // 2]
        text = "".join(f"data: {line}\n\n" for line in lines).encode()
        if trouble == "gzip":
            import gzip

            self._send(200, gzip.compress(text), extra={"Content-Encoding": "gzip"})
        else:
            self._send(200, text, "text/event-stream")

    def _send(
        self,
        status: int,
        body: bytes,
        kind: str = "application/json",
        extra: dict[str, str] | None = None,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (extra or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def events(server: Any, body: dict[str, Any]) -> Iterator[str]:
    """The events of a reply, in the words of the engine."""
    args = server.args
    length = 0 if args.spec_type == "none" else args.spec_draft_n_max
    prompt, tokens = body["messages"][-1]["content"], body["max_tokens"]
    tokens = min(tokens, 12 + len(prompt) % 40)
    done, total, kept, ms = 1, 0, 0, 0.0
    steps = [(0, 0, 1), *rounds_of(prompt, tokens, length)]
    for number, (drafted, accepted, emitted) in enumerate(steps):
        if number:
            total, kept = total + drafted, kept + accepted
            ms += 1e3 * (DRAFT_S + drafted * STEP_S if drafted else PLAIN_S)
            done += emitted
        timings = {"predicted_n": done, "predicted_ms": ms}
        if total:
            timings |= {"draft_n": total, "draft_n_accepted": kept}
        yield from _chunks(args, done, emitted, timings, number)
    with server.lock:
        server.counts["num_draft_tokens"] += total
        server.counts["num_accepted_tokens"] += kept
    last: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens}
    if args.trouble == "no-usage":
        usage = {}
    if args.engine == "llama.cpp":
        last["timings"] = timings | {"prompt_n": PROMPT_TOKENS}
    if args.trouble == "unknown":
        last |= {"novelty": {"deep": [1, 2]}, "system_fingerprint": None}
    yield json.dumps(last)
    yield json.dumps({"choices": [], "usage": usage} | _metrics(args, steps[1:], kept))
    yield "[DONE]"


def _chunks(
    args: argparse.Namespace, done: int, emitted: int, timings: dict[str, Any], number: int
) -> Iterator[str]:
    """The events of one round."""
    if args.engine == "llama.cpp":
        for place in range(done - emitted + 1, done + 1):
            choice = {"index": 0, "delta": {"content": "w "}, "finish_reason": None}
            yield json.dumps({"choices": [choice], "timings": timings | {"predicted_n": place}})
    else:
        choice = {"index": 0, "delta": {"content": "w " * emitted}, "finish_reason": None}
        event: dict[str, Any] = {"choices": [choice]}
        if args.engine == "vllm":
            choice["token_ids"] = [7] * emitted
        if args.engine == "sglang":
            event["usage"] = {"completion_tokens": done}
        yield json.dumps(event)


def _metrics(args: argparse.Namespace, steps: list[Any], kept: int) -> dict[str, Any]:
    if args.engine == "sglang" and args.spec_type != "none":
        told = {"spec_verify_ct": len(steps), "spec_num_correct_drafts": kept}
        return {"sglext": {"spec_tokens_details": told}}
    if args.engine == "vllm" and args.trouble == "detailed":
        stats = {
            "per_step_drafted": [d for d, _, _ in steps],
            "per_step_accepted": [a for _, a, _ in steps],
        }
        return {"metrics": {"speculative_decoding": stats}}
    return {}


def options() -> argparse.ArgumentParser:
    """Of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", default="llama.cpp")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--spec-type", default="draft-simple")
    parser.add_argument("--spec-draft-n-max", type=int, default=3)
    parser.add_argument("--trouble", default="")
    parser.add_argument("--log", default="")
    return parser


class Fake(ThreadingHTTPServer):
    """Serves the words of its command line; its handlers have ended when it is closed."""

    daemon_threads = False

    def __init__(self, *words: str) -> None:
        self.args = options().parse_args(words)
        self.counts = {"num_draft_tokens": 0, "num_accepted_tokens": 0}
        self.asked, self.lock, self.closing = 0, threading.Lock(), threading.Event()
        super().__init__(("127.0.0.1", self.args.port), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error: what is printed here lands in another test."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def server_close(self) -> None:
        """Waits for the handlers, which wait no longer."""
        self.closing.set()
        super().server_close()


if __name__ == "__main__":
    Fake(*sys.argv[1:]).serve_forever()
