"""Learned controllers: a small ReLU network over what policies.learned.observation shows of a
request.

One decides per round (`neural-round`), one after every drafted token (`neural-token`). Weights and
biases lie on a grid of 1/1024 inside -32..32, inputs on that grid inside -1..1, and hidden numbers
are put back on it, inside 0..256. So every product is a multiple of 2^-20 below 2^13, and sums of
as many as 128 are exact in float64: whatever adds them up, in whatever order, gets the same bits.

Letters: K inputs, H1 and H2 hidden numbers, A outputs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import ClassVar, NamedTuple

import numpy as np

from policies.base import Draft, FloatArray, Outcome, Policy, State, View
from policies.fields import DRAFT, FACTOR, Domain, hyper
from policies.learned.observation import (
    DRAFTING,
    GRID,
    MEMORY,
    ROUND,
    forget,
    remember,
    show_costs,
    show_draft,
    show_no_draft,
    show_request,
)
from policies.randomness import Rng

LARGEST = 32.0  # of a weight or bias
WIDEST = 128  # numbers in a layer
TOP = 256.0 * GRID  # of a hidden number, in steps of the grid


class Network(NamedTuple):
    """Two hidden layers: w1 [K, H1], b1 [H1], w2 [H1, H2], b2 [H2], w3 [H2, A], b3 [A], float64 on
    the grid. Outputs of x [K] are f(f(x w1 + b1) w2 + b2) w3 + b3, where f is ReLU, rounded to the
    grid (halves up) and at most 256.
    """

    w1: FloatArray
    b1: FloatArray
    w2: FloatArray
    b2: FloatArray
    w3: FloatArray
    b3: FloatArray


class NeuralState(NamedTuple):
    """Per request: memory [slots, MEMORY], shown [slots, K], see policies.learned.observation.
    Shared: the network times 1024, as `answers` takes it, with half a step of the grid on hidden
    biases.
    """

    memory: FloatArray
    shown: FloatArray
    w1: FloatArray
    b1: FloatArray
    w2: FloatArray
    b2: FloatArray
    w3: FloatArray
    b3: FloatArray


def quantise(
    w1: FloatArray, b1: FloatArray, w2: FloatArray, b2: FloatArray, w3: FloatArray, b3: FloatArray
) -> Network:
    """The network nearest to these numbers; shapes as in Network. Raises ValueError where they do
    not fit together, are not finite or too many.
    """
    raw = Network(*(np.asarray(a, dtype=np.float64) for a in (w1, b1, w2, b2, w3, b3)))
    for name, array in zip(Network._fields, raw, strict=True):
        if not np.isfinite(array).all():
            raise ValueError(f"{name} holds NaN or infinity")
    clipped = (np.clip(array, -LARGEST, LARGEST) for array in raw)
    near = (np.floor(array * GRID + 0.5) / GRID for array in clipped)
    network = Network(*(np.ascontiguousarray(array) + 0.0 for array in near))  # no -0.0
    wrong = fault(network)
    if wrong:
        raise ValueError(wrong)
    return network


def fault(network: Network) -> str:
    """The fault of a network, '' if there is none: field and reason."""
    for name, array in zip(Network._fields, network, strict=True):
        if array.ndim != (2 if name[0] == "w" else 1):
            return f"{name} has shape {list(array.shape)}, not that of a weight or bias"
        if not 1 <= min(array.shape) <= max(array.shape) <= WIDEST:
            return f"{name} has shape {list(array.shape)}; layers hold 1 to {WIDEST} numbers"
        if not np.isfinite(array).all():
            return f"{name} holds NaN or infinity"
        if (np.abs(array) > LARGEST).any() or (array * GRID != np.floor(array * GRID)).any():
            return f"{name} is not on the grid of 1/1024 inside -32..32"
    w1, b1, w2, b2, w3, b3 = network
    for name, rows, weight in (("w2", w1, w2), ("w3", w2, w3)):
        if weight.shape[0] != rows.shape[1]:
            return f"{name} has {weight.shape[0]} rows, the layer before it {rows.shape[1]} numbers"
    for name, weight, bias in (("b1", w1, b1), ("b2", w2, b2), ("b3", w3, b3)):
        if bias.shape[0] != weight.shape[1]:
            return f"{name} has {bias.shape[0]} numbers, its layer {weight.shape[1]}"
    return ""


def digest_of(network: Network) -> int:
    """The first 48 bits of the SHA-256 of shapes and weights."""
    total = hashlib.sha256()
    for array in network:
        total.update(repr(array.shape).encode())
        total.update((array + 0.0).astype("<f8").tobytes())
    return int.from_bytes(total.digest()[:6], "big")


def answers(state: NeuralState, slot: int) -> FloatArray:
    """[A] outputs for what is shown of this slot, times 1024."""
    x = np.floor(state.shown[slot] @ state.w1 + state.b1)
    x = np.floor(np.minimum(np.maximum(x, 0.0), TOP) @ state.w2 + state.b2)
    outputs: FloatArray = np.minimum(np.maximum(x, 0.0), TOP) @ state.w3 + state.b3
    return outputs


def show_round(state: NeuralState, slot: int, view: View) -> None:
    """Fill what is shown before a round."""
    show_request(state.memory, slot, view.room, view.context_tokens, state.shown, slot)
    show_costs(view.draft_step_s, view.verify_s, view.batch_size, view.waiting, state.shown, slot)


@dataclasses.dataclass(frozen=True)
class _Neural(Policy):
    """Common parts of both kinds. The network is no field: it is as large as it likes, and all
    networks share one compiled kernel. It travels with the object through pickle and copy, but not
    through dataclasses.replace: make another one with neural_policy.
    """

    digest: int = hyper(0, Domain(0, (1 << 48) - 1), "ours: the network's, see digest_of")
    round_s: float = hyper(0.0, FACTOR, "ours: measured where the network is exported")

    network: ClassVar[Network | None] = None

    def new_state(self, slots: int) -> State:
        network = self.network
        if network is None:
            raise ValueError(f"{self.name} has no network; make it with neural_policy(network)")
        memory = np.zeros((slots, MEMORY))
        for slot in range(slots):
            forget(memory, slot)
        half = 0.5 / GRID
        layers = (
            network.w1, network.b1 + half, network.w2 / GRID, network.b2 + half,
            network.w3 / GRID, network.b3,
        )  # fmt: skip
        shown = np.zeros((slots, network.w1.shape[0]))
        return NeuralState(memory, shown, *(np.ascontiguousarray(a * GRID) for a in layers))

    def admit(self, state: NeuralState, slot: int) -> None:
        forget(state.memory, slot)

    def learn(self, state: NeuralState, slot: int, view: View, outcome: Outcome) -> None:
        remember(state.memory, slot, outcome.drafted, outcome.accepted)

    def control_s(self) -> tuple[float, float]:
        return self.round_s, 0.0


@dataclasses.dataclass(frozen=True)
class NeuralRound(_Neural):
    """K = len(ROUND), A = G + 1: output g is what drafting g tokens is worth to the network."""

    name = "neural-round"
    rule = "gamma = the largest output of a trained network over costs and recent acceptance"
    source = "ours: trained in this project's environment"

    def gamma(self, state: NeuralState, slot: int, view: View, rng: Rng) -> int:
        show_round(state, slot, view)
        return int(np.argmax(answers(state, slot)))


@dataclasses.dataclass(frozen=True)
class NeuralToken(_Neural):
    """K = len(ROUND) + len(DRAFTING), A = 2: stop, and draft one more token. Asked before the first
    token, too: a round may be plain.
    """

    gamma_max: int = hyper(16, DRAFT, "ours: the depth of a recording")
    token_s: float = hyper(0.0, FACTOR, "ours: measured where the network is exported")

    name = "neural-token"
    rule = "draft on while a trained network over costs, acceptance and confidence prefers it"
    source = "ours: trained in this project's environment"

    def gamma(self, state: NeuralState, slot: int, view: View, rng: Rng) -> int:
        show_round(state, slot, view)
        show_no_draft(state.shown, slot)
        outputs = answers(state, slot)
        return self.gamma_max if float(outputs[1]) > float(outputs[0]) else 0

    def proceed(self, state: NeuralState, slot: int, draft: Draft) -> bool:
        show_draft(draft.drafted, draft.top1_prob, draft.entropy, state.shown, slot)
        outputs = answers(state, slot)
        return float(outputs[1]) > float(outputs[0])

    def control_s(self) -> tuple[float, float]:
        return self.round_s, self.token_s


KINDS: dict[str, type[_Neural]] = {cls.name: cls for cls in (NeuralRound, NeuralToken)}


def kind_of(inputs: int, outputs: int) -> type[_Neural]:
    """The policy that such a network decides for; ValueError if there is none."""
    if inputs == len(ROUND) and outputs >= 2:
        return NeuralRound
    if inputs == len(ROUND) + len(DRAFTING) and outputs == 2:
        return NeuralToken
    raise ValueError(
        f"w1 has {inputs} rows, b3 {outputs} numbers: {NeuralRound.name} takes {len(ROUND)} and 2 "
        f"or more, {NeuralToken.name} {len(ROUND) + len(DRAFTING)} and 2"
    )


def neural_policy(
    network: Network, *, gamma_max: int = 16, round_s: float = 0.0, token_s: float = 0.0
) -> NeuralRound | NeuralToken:
    """The policy that this network decides for, its kind told by the number of inputs.

    gamma_max and token_s are a per-token network's alone. round_s, token_s: see Policy.control_s.
    Raises ValueError where the network or a number is out of range.
    """
    wrong = fault(network)
    if wrong:
        raise ValueError(wrong)
    policy: NeuralRound | NeuralToken
    if kind_of(network.w1.shape[0], network.b3.shape[0]) is NeuralToken:
        policy = NeuralToken(digest_of(network), round_s, gamma_max, token_s)
    elif token_s == 0.0:
        policy = NeuralRound(digest_of(network), round_s)
    else:
        raise ValueError(f"token_s is {token_s}, but {NeuralRound.name} decides nothing per token")
    object.__setattr__(policy, "network", network)
    return policy
