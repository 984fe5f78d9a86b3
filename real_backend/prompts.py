"""Questions (Spec-Bench's own file as it is) and the requests that their turns become."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from real_backend.options import SHAPE_PREFIX, PairOptions
from traces.errors import InputError, warn
from traces.json_text import ENCODING, parse_json
from traces.schema import Trace, refuse_censored
from traces.split import task_of

if TYPE_CHECKING:
    from real_backend.load_pair import Pair

EMBEDDED_PROMPTS = Path(__file__).parent / "pair" / "prompts.jsonl"
_LONGEST_LINE = 1 << 24  # characters; a file without line ends must not fill the memory


class Request(NamedTuple):
    """One reply to produce: request_id "QUESTION.TURN", its task, the prompt's token ids."""

    request_id: str
    category: str
    prompt_ids: list[int]


@dataclasses.dataclass(frozen=True)
class Question:
    """One line of a prompt file. task: Spec-Bench's name for the category's group. where: the line,
    for messages.
    """

    question_id: str
    category: str
    turns: tuple[str, ...]
    where: str = dataclasses.field(default="", compare=False)

    @property
    def task(self) -> str:
        """The category's group; see traces.split.task_of."""
        return task_of(self.category)

    def request_id(self, turn: int) -> str:
        """Identity of one turn, 0-based here and 1-based in the name."""
        return f"{self.question_id}.{turn + 1}"


def _question(line: str, where: str) -> Question:
    raw = parse_json(line, where, once=True)
    if not isinstance(raw, dict):
        raise InputError(f"{where} must be an object with question_id, category, turns")
    for field in ("question_id", "category", "turns"):
        if field not in raw:
            raise InputError(f"{where}: field {field!r} is missing")
    name, category, turns = raw["question_id"], raw["category"], raw["turns"]
    if type(name) not in (str, int) or not str(name).strip():
        raise InputError(f"{where}: 'question_id' must be a whole number or text, not {name!r}")
    if not isinstance(category, str) or not category.strip():
        raise InputError(f"{where}: 'category' must be the name of a task, not {category!r}")
    said = isinstance(turns, list) and all(isinstance(t, str) and t.strip() for t in turns)
    if not (said and turns):
        raise InputError(f"{where}: 'turns' must be a list of strings that say something")
    return Question(str(name), category, tuple(turns), where)


def read_questions(path: Path, limit: int = 0) -> list[Question]:
    """The questions of a JSON-lines file, the first `limit` of them if limit > 0.

    Raises InputError naming file and line for a missing or empty file, a line that is no JSON, a
    missing or empty field, a question_id that occurs twice.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such prompt file")
    questions: list[Question] = []
    seen: set[str] = set()
    try:
        with path.open(encoding=ENCODING) as file:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), start=1):
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"{path}, line {number} is too long for a prompt; JSON lines?")
                if not line.strip():
                    continue
                question = _question(line, f"{path}, line {number}")
                if question.question_id in seen:
                    raise InputError(
                        f"{path}, line {number}: question_id {question.question_id} occurs twice"
                    )
                seen.add(question.question_id)
                questions.append(question)
                if limit and len(questions) == limit:
                    break
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason})") from None
    if not questions:
        raise InputError(f"{path} holds no questions; expected JSON lines")
    return questions


def alike(questions: list[Question], per_task: int) -> list[Question]:
    """At most so many questions of every task, evenly spread over those in the file and in its
    order; 0: all.
    """
    by_task: dict[str, list[int]] = {}
    for index, question in enumerate(questions):
        by_task.setdefault(question.task, []).append(index)
    kept: set[int] = set()
    for places in by_task.values():
        count = min(per_task or len(places), len(places))
        kept |= {places[k * len(places) // count] for k in range(count)}
    return [questions[index] for index in sorted(kept)]


def questions_hash(questions: list[Question]) -> str:
    """SHA-256 of what is asked, independent of the file's formatting."""
    rows = [(q.question_id, q.category, q.turns) for q in questions]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def encode_chat(pair: Pair, turns: tuple[str, ...], replies: list[str], where: str) -> list[int]:
    """Token ids of the dialogue so far, ready for the next reply.

    Uses the tokenizer's chat template; a tokenizer without one gets the turns and replies as plain
    text, a blank line between them. Raises InputError if nothing is left for a reply in the
    context.
    """
    tokenizer = _tokenizer(pair)
    if getattr(tokenizer, "chat_template", None):
        messages = []
        for index, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            if index < len(replies):
                messages.append({"role": "assistant", "content": replies[index]})
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        pieces = [p for pair_ in zip(turns, [*replies, ""], strict=False) for p in pair_ if p]
        ids = tokenizer("\n\n".join(pieces) + "\n\n")["input_ids"]
    if pair.max_context and len(ids) + 1 >= pair.max_context:
        raise InputError(
            f"{where}: the prompt has {len(ids)} tokens, the pair's context holds "
            f"{pair.max_context}; shorten or drop it"
        )
    if not ids:
        raise InputError(f"{where}: the prompt is empty for this tokenizer")
    return [int(i) for i in ids]


def decode_reply(pair: Pair, token_ids: list[int]) -> str:
    """The text of a reply, special tokens left out."""
    return str(_tokenizer(pair).decode(token_ids, skip_special_tokens=True))


def _tokenizer(pair: Pair) -> Any:
    if pair.tokenizer is None:
        raise InputError(
            f"pair {pair.name} has random weights and no tokenizer: it can neither read nor write "
            "text; use a pair with weights"
        )
    return pair.tokenizer


def request_for(pair: Pair, question: Question, turn: int, replies: list[str]) -> Request:
    """The request of one turn, given the replies to the turns before it."""
    name = question.request_id(turn)
    place = f"{question.where}: " if question.where else ""
    where = f"{place}question {question.question_id}, turn {turn + 1}"
    ids = encode_chat(pair, question.turns[: turn + 1], replies, where)
    return Request(name, question.task, ids)


def _check_recorded(trace: Trace, pair: Pair) -> None:
    """Refuse a pair that cannot have produced the trace; warn if it ran somewhere else."""
    if trace.meta.tokenizer_sha256 != pair.tokenizer_sha256:
        raise InputError(
            f"the trace was recorded with another tokenizer than that of pair {pair.name!r}; give "
            "the pair it was captured from"
        )
    about = pair.describe()
    for field in ("pair", "device", "dtype"):
        ours = getattr(trace.meta, field)
        theirs = about["device_name" if field == "device" else field]
        if ours != theirs:
            line = f"the trace has {field} {ours!r}, the engine runs {theirs!r}; replies may differ"
            warn(line)


def requests_of_trace(questions: list[Question], trace: Trace, pair: Pair) -> list[Request]:
    """The requests a trace recorded, one per row and in its order, for decoding them again.

    Earlier turns are answered with the replies in the trace. Raises InputError if the pair has
    another tokenizer, a row's question is not in the file, an earlier turn is not in the trace, or
    a prompt has another length than recorded.
    """
    _check_recorded(trace, pair)
    if trace.token_ids is None:
        raise InputError("the trace holds no token ids, so its dialogues cannot be rebuilt")
    by_name = {q.request_id(t): (q, t) for q in questions for t in range(len(q.turns))}
    rows = {name: row for row, name in enumerate(trace.request_id)}
    requests = []
    for row, name in enumerate(trace.request_id):
        if name not in by_name:
            raise InputError(f"request {name} of the trace is not in the prompt file")
        question, turn = by_name[name]
        replies = []
        for earlier in range(turn):
            before = rows.get(question.request_id(earlier))
            if before is None:
                raise InputError(f"request {name} needs the turn before it, which the trace lacks")
            span = slice(trace.offsets[before], trace.offsets[before + 1])
            replies.append(decode_reply(pair, trace.token_ids[span].tolist()))
        request = request_for(pair, question, turn, replies)
        if len(request.prompt_ids) != int(trace.prompt_tokens[row]):
            raise InputError(
                f"request {name}: the prompt has {len(request.prompt_ids)} tokens here and "
                f"{int(trace.prompt_tokens[row])} in the trace; another prompt file or tokenizer?"
            )
        requests.append(request)
    return requests


def questions_of(pair: PairOptions, prompts: Path | None) -> list[Question]:
    """The questions behind a trace: of the prompt file, or the embedded pair's own."""
    if (pair.name or "").startswith(SHAPE_PREFIX):
        raise InputError(
            f"--pair {pair.name} has random weights and cannot repeat the trace's replies; take "
            "acceptance from the trace with --acceptance trace"
        )
    if prompts is None and not pair.is_embedded:
        raise InputError("--prompts is needed: the prompt file that the trace was captured from")
    return read_questions(prompts or EMBEDDED_PROMPTS)


def forced_requests(trace: Trace, pair: Pair) -> list[Request]:
    """Random prompts of the recorded lengths, for runs whose acceptance is the trace's.

    Raises InputError if they do not fit into the pair's context, or acceptance is censored.
    """
    refuse_censored(trace, "replayed acceptance")
    longest = trace.longest_context + trace.meta.depth + 1
    if pair.max_context and longest > pair.max_context:
        raise InputError(
            f"the trace's longest dialogue needs {longest} tokens, the context of pair "
            f"{pair.name!r} holds {pair.max_context}"
        )
    random = np.random.default_rng(0)
    return [
        Request(name, task, random.integers(pair.vocab_size, size=int(tokens)).tolist())
        for name, task, tokens in zip(
            trace.request_id, trace.category, trace.prompt_tokens, strict=True
        )
    ]
