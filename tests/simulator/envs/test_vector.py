"""The native vector environments against so many single ones, bit for bit, across autoresets."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import simulator.envs  # noqa: F401  registers the environments
from policies.base import Outcome
from simulator.envs.kernel import step_rounds
from simulator.envs.pins import RECORDS
from tests.specimens import few_or_slow
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace

IDS = ["gammalab/Round-v0", "gammalab/Token-v0", "gammalab/Shape-v0"]
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
LANES = 7
OPTIONS = {"cost_ratios": [0, 4.0, 11.0], "loads": [1, 4]}


def options_of(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Trees are priced for one request at a time."""
    return {k: v for k, v in options.items() if k != "loads" or "Shape" not in name}


def drawn(native: Any, rng: np.random.Generator) -> Any:
    """An action for every lane."""
    space = native.single_action_space
    if isinstance(space, gymnasium.spaces.MultiDiscrete):
        return rng.integers(0, space.nvec, (LANES, len(space.nvec)))
    return rng.integers(0, space.n, LANES)


def pair(name: str, mode: AutoresetMode, limit: int, copy: bool = True) -> tuple[Any, Any]:
    """The native one and gymnasium's SyncVectorEnv of single ones."""
    single = {"trace": GREEDY, "timing": TIMING}
    native = gymnasium.make_vec(
        name, LANES, max_episode_steps=limit, autoreset_mode=mode, copy=copy, **single
    )
    makers = [
        lambda: gymnasium.make(name, max_episode_steps=limit, disable_env_checker=True, **single)
    ] * LANES
    return native, SyncVectorEnv(makers, autoreset_mode=mode)


def assert_outcomes(ours: Any, theirs: Any) -> None:
    """Records against the objects that SyncVectorEnv collects."""
    masks = theirs.get("_outcome", np.zeros(LANES, dtype=bool))
    assert np.array_equal(ours["_outcome"], masks)
    for lane in np.flatnonzero(masks):
        row = ours["outcome"][lane]
        assert Outcome(*(row[name].item() for name in Outcome._fields)) == theirs["outcome"][lane]


@pytest.mark.parametrize("copy", few_or_slow([True, False], [False]))
@pytest.mark.parametrize("limit", few_or_slow([9, 4096], [9]))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", IDS)
def test_bit_for_bit(name: str, mode: AutoresetMode, limit: int, copy: bool) -> None:
    native, sync = pair(name, mode, limit, copy)
    assert native.metadata["autoreset_mode"] is mode
    assert native.single_observation_space == sync.single_observation_space
    assert native.action_space == sync.action_space
    ours, _ = native.reset(seed=11, options=options_of(name, OPTIONS))
    theirs, _ = sync.reset(seed=11, options=options_of(name, OPTIONS))
    assert np.array_equal(ours, theirs)
    rng, ends = np.random.default_rng(0), 0
    steps = 900 if limit > 9 else 300  # cut at 9, 300 hold more ends than 900 uncut ones
    for step in range(steps):
        actions = drawn(native, rng)
        if step == steps // 2:  # in the middle of things, without a seed and with other options
            ours, _ = native.reset(options={"requests": [0, 9]})
            theirs, _ = sync.reset(options={"requests": [0, 9]})
            assert np.array_equal(ours, theirs)
        left, right = native.step(actions), sync.step(actions)
        for mine, other in zip(left[:4], right[:4], strict=True):
            assert mine.dtype == other.dtype and np.array_equal(mine, other)
        assert_outcomes(left[4], right[4])
        ended = left[2] | left[3]
        ends += int(ended.sum())
        if mode is AutoresetMode.SAME_STEP and ended.any():
            assert np.array_equal(left[4]["_final_obs"], right[4]["_final_obs"])
            assert np.array_equal(left[4]["_final_info"], right[4]["_final_info"])
            assert_outcomes(left[4]["final_info"], right[4]["final_info"])
            for lane in range(LANES):
                mine, other = left[4]["final_obs"][lane], right[4]["final_obs"][lane]
                assert (mine is None) == (other is None)
                assert mine is None or np.array_equal(mine, other)
    assert ends > 20
    assert left[3].dtype == np.bool_


@pytest.mark.parametrize("name", IDS)
def test_disabled_and_partial_resets(name: str) -> None:
    native, sync = pair(name, AutoresetMode.DISABLED, 12)
    ours, _ = native.reset(seed=list(range(LANES)))
    theirs, _ = sync.reset(seed=list(range(LANES)))
    rng = np.random.default_rng(1)
    for turn in range(200):
        actions = drawn(native, rng)
        left, right = native.step(actions), sync.step(actions)
        for mine, other in zip(left[:4], right[:4], strict=True):
            assert np.array_equal(mine, other)
        ended = left[2] | left[3]
        if ended.any():
            with pytest.raises(ResetNeeded):
                native.step(actions)
            options = {"reset_mask": ended} | ({"loads": [1, 2]} if turn % 2 else {})
            options = options_of(name, options)
            seed = [turn + i for i in range(LANES)] if turn % 3 == 0 else None
            ours, _ = native.reset(seed=seed, options=dict(options))
            theirs, _ = sync.reset(seed=seed, options=dict(options))
            assert np.array_equal(ours, theirs)


def test_copies_stay_and_buffers_do_not() -> None:
    for copy in (True, False):
        native, _ = pair(IDS[0], AutoresetMode.NEXT_STEP, 4096, copy)
        first, _ = native.reset(seed=0)
        kept = first.copy()
        second, rewards, *_, infos = native.step(np.full(LANES, 3))
        third, later, *_, others = native.step(np.full(LANES, 1))
        assert np.array_equal(first, kept) == copy
        assert (second is third) != copy and (rewards is later) != copy
        assert (infos["outcome"] is others["outcome"]) != copy


def test_refusals_change_nothing() -> None:
    native, _ = pair(IDS[0], AutoresetMode.NEXT_STEP, 4096)
    with pytest.raises(ResetNeeded):
        native.step(np.zeros(LANES, dtype=np.int64))
    native.reset(seed=0)
    before = native.stage.arrays.lanes.tobytes()
    for wrong in (np.full(LANES, 17), np.full(LANES, -1), np.zeros(LANES + 1, dtype=np.int64)):
        with pytest.raises(InvalidAction):
            native.step(wrong)
    with pytest.raises(TypeError):
        native.step(np.zeros(LANES))
    assert native.stage.arrays.lanes.tobytes() == before
    for mask in (np.zeros(LANES, dtype=bool), np.ones(LANES)):
        with pytest.raises(ValueError, match="reset_mask"):
            native.reset(options={"reset_mask": mask})
    with pytest.raises(ValueError, match="seeds"):
        native.reset(seed=[1, 2])


def test_refusals_of_trees_change_nothing() -> None:
    native, _ = pair(IDS[2], AutoresetMode.NEXT_STEP, 4096)
    native.reset(seed=0)
    before = native.stage.arrays.lanes.tobytes()
    for wrong in ([4, 0], [-1, 0], [0, 5], [0, -1], [0]):
        with pytest.raises(InvalidAction):
            native.step(np.array([wrong] * LANES))
    with pytest.raises(TypeError):
        native.step(np.zeros((LANES, 2)))
    assert native.stage.arrays.lanes.tobytes() == before


def test_pictures() -> None:
    native = gymnasium.make_vec(IDS[1], 2, render_mode="rgb_array")
    native.reset(seed=0)
    for _ in range(5):
        native.step(np.array([1, 0]))
    left, right = native.render()
    assert left.dtype == np.uint8 and left.shape == right.shape


def test_the_last_reply_ends_inside_the_arrays() -> None:
    """As plain Python, where an index behind the end is an error: compiled it would be a number."""
    trace = read_trace(GREEDY).select([0])
    env = gymnasium.make_vec(IDS[0], 1, trace=trace, timing=TIMING, autoreset_mode="Disabled")
    env.reset(seed=0)
    arrays = env.unwrapped.stage.arrays
    plain = arrays._replace(**{name: getattr(arrays, name).view(np.recarray) for name in RECORDS})
    while not plain.terminated[0]:
        plain.actions[:] = 3
        assert step_rounds(plain) == -1
    assert plain.lanes[0].at == trace.positions
