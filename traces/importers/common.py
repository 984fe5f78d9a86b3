"""Common parts of the importers: options, JSON lines with their line numbers, replies -> Trace."""

from __future__ import annotations

import dataclasses
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from traces.errors import InputError
from traces.importers.flags import Flags, accept_lengths
from traces.json_text import ENCODING, parse_json
from traces.schema import DEEPEST, Trace, TraceMeta

NOT_RECORDED = "not recorded"
_LONGEST_LINE = 1 << 24  # characters; a file without line ends must not fill the memory
_LONGEST_REPLY = 1 << 22  # tokens
_MOST_UNPACKED = 1 << 29  # bytes of a gzip file: a small one may hold more than the memory
_ANY_FORMAT = ("depth", "temperature", "max_new_tokens", "strict")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of an importer; each reads a few of these and refuses the others.

    schedule: how gamma was set, "heuristic:5" or "fixed:5", one for all files or one per file with
        commas.
    key: which of several objects of a row.
    merge: further runs of the same requests.
    vanilla: the same requests decoded without a draft.
    depth: deepest draft of a replay, 0: what was recorded.
    temperature: of the recorded run where the file does not say.
    max_new_tokens: the run's reply limit, 0: the format's usual one, or the longest reply.
    strict: mend nothing, raise InputError instead.
    pad: fill replies up with unknown positions instead of cutting them.
    """

    schedule: str = ""
    key: str = ""
    merge: tuple[Path, ...] = ()
    vanilla: Path | None = None
    depth: int = 0
    temperature: float = 0.0
    max_new_tokens: int = 0
    strict: bool = False
    pad: bool = False

    def only(self, name: str, *used: str) -> None:
        """Raise InputError if an option is set that the format `name` does not read."""
        for field in dataclasses.fields(self):
            unused = field.name not in (*used, *_ANY_FORMAT)
            if unused and getattr(self, field.name) != field.default:
                if field.name == "merge":
                    raise InputError(f"--format {name} reads one file, not several")
                raise InputError(f"--{field.name} means nothing to --format {name}")


@dataclasses.dataclass(frozen=True)
class Reply:
    """One request of a recording.

    flags [L] int8 (1, 0, -1: see flags.py), L >= 1; token_ids [L] int32 or None.
    """

    request_id: str
    category: str
    prompt_tokens: int
    flags: Flags
    token_ids: npt.NDArray[np.int32] | None = None


def regular_file(path: Path) -> Path:
    """`path` itself; raises InputError if it is a folder or not there."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return path


def open_text(path: Path) -> io.TextIOWrapper:
    """The text of a file, unpacked if it is gzip; raises InputError if it is not there or damaged,
    or unpacks to more than 512 MiB.
    """
    with regular_file(path).open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    if not packed:
        return path.open(encoding=ENCODING)
    text = io.BytesIO()
    try:
        with gzip.open(path) as unpacked:
            while block := unpacked.read(1 << 20):
                text.write(block)
                if text.tell() > _MOST_UNPACKED:
                    raise InputError(f"{path} unpacks to more than 512 MiB; unpack it yourself")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is a damaged gzip file ({error}); pack it again") from None
    text.seek(0)
    return io.TextIOWrapper(text, encoding=ENCODING)


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file, gzipped or not, each with "FILE, line K" for messages.

    Raises InputError for a missing, empty or binary file, a line of more than 16 million
    characters, and a line that is no JSON object.
    """
    found = False
    try:
        with open_text(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), start=1):
                where = f"{path}, line {number}"
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"{where} has more than 16 million characters; JSON lines?")
                if line.strip():
                    found = True
                    yield where, _json_object(line, where)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}); compressed?") from None
    if not found:
        raise InputError(f"{path} is empty; expected JSON lines")


def _json_object(line: str, where: str) -> dict[str, Any]:
    raw = parse_json(line, where)
    if not isinstance(raw, dict):
        raise InputError(f"{where} must be a JSON object")
    return raw


def field(raw: dict[str, Any], name: str, where: str) -> Any:
    """raw[name]; raises InputError if it is missing."""
    if name not in raw:
        raise InputError(f"{where}: field {name!r} is missing")
    return raw[name]


def label(value: Any, name: str, where: str) -> str:
    """A JSON text or integer as text that a file can hold; raises InputError if it is neither."""
    if type(value) not in (str, int) or not str(value).isprintable():
        raise InputError(f"{where}: {name!r} must be a line of text or an integer")
    return str(value)


def integer(value: Any, name: str, where: str, low: int = 0) -> int:
    """A JSON integer of at least `low`; raises InputError if it is anything else."""
    return int(integers([value], name, where, low)[0])


def integers(value: Any, name: str, where: str, low: int = 0) -> npt.NDArray[np.int32]:
    """A JSON list of integers, each at least `low`; raises InputError naming the first other."""
    if not isinstance(value, list):
        raise InputError(f"{where}: {name!r} must be a list of integers")
    if not set(map(type, value)) <= {int}:
        odd = next(v for v in value if type(v) is not int)
        raise InputError(f"{where}: {name!r} holds {str(odd)[:40]!r}, which is not an integer")
    if value and not low <= min(value) <= max(value) < 2**31:
        odd = next(v for v in value if not low <= v < 2**31)
        raise InputError(f"{where}: {name!r} holds {odd}; it must be {low} to 2^31 - 1")
    return np.asarray(value, dtype=np.int32)


def reply_length(tokens: int, where: str) -> int:
    """`tokens` itself; raises InputError for more than a reply has, which only fill memory."""
    if tokens > _LONGEST_REPLY:
        raise InputError(f"{where}: a reply of {tokens} tokens; at most {_LONGEST_REPLY}")
    return tokens


def trace_of(
    replies: Sequence[Reply],
    options: Options,
    source: dict[str, Any],
    *,
    depth: int,
    usual_limit: int = 1,
    runs: tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]] | None = None,
    **about: Any,
) -> Trace:
    """The replies as a Trace: "censored" if a flag is unknown, else "exact" or, sampled, "in-law".

    source: needs "files", gains the share of censored positions. depth: of the recording, unless
    the options name another; usual_limit: of new tokens, likewise. runs: accept_len and censored
    where they are not simply those of the flags. about: fields of TraceMeta that the file told.
    Raises InputError if there is no reply or a request_id occurs twice.
    """
    name = str(source["files"][0])
    if not replies:
        raise InputError(f"{name} holds no reply with a token")
    seen: set[str] = set()
    for reply in replies:
        if reply.request_id in seen:
            raise InputError(f"{name}: request {reply.request_id} occurs twice")
        seen.add(reply.request_id)
    depth = options.depth or max(1, depth)
    if depth > DEEPEST:
        raise InputError(f"{name}: drafts of {depth} tokens; at most {DEEPEST}, see --depth")
    lengths = [len(reply.flags) for reply in replies]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flags = np.concatenate([reply.flags for reply in replies])
    accept_len, censored = accept_lengths(flags, offsets) if runs is None else runs
    tokens = [reply.token_ids for reply in replies if reply.token_ids is not None]
    temperature = about.setdefault("temperature", options.temperature)
    known = "in-law" if temperature else "exact"
    unrecorded = ("pair", "target", "draft", "tokenizer_sha256", "device", "dtype")
    return Trace(
        meta=TraceMeta(
            **(dict.fromkeys(unrecorded, NOT_RECORDED) | about),
            exactness="censored" if censored.any() else known,
            depth=depth,
            max_new_tokens=max(options.max_new_tokens or usual_limit, *lengths, 1),
            source=source | {"censored_share": round(float(censored.mean()), 6)},
        ),
        offsets=offsets,
        prompt_tokens=np.array([reply.prompt_tokens for reply in replies], dtype=np.int32),
        request_id=tuple(reply.request_id for reply in replies),
        category=tuple(reply.category for reply in replies),
        accept_len=accept_len,
        token_ids=np.concatenate(tokens) if len(tokens) == len(replies) else None,
        censored=censored if censored.any() else None,
    )
