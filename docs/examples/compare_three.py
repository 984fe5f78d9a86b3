"""Three controllers on the shipped recording: seconds over those of plain decoding."""

from experiments.common.cost_sources import step_costs
from policies.registry import parse_policies
from simulator.replay.replay import replay
from traces.shipped import GREEDY, TIMING
from traces.store import read_trace
from traces.timing import read_timing

trace, timing = read_trace(GREEDY), read_timing(TIMING)
costs = step_costs(timing, trace)
plain, *logs = (
    (policy, replay(policy, trace, costs).elapsed_s.sum())
    for policy in parse_policies("never,fixed:gamma=2,gammatune,hf-confidence")
)
for policy, seconds in logs:
    print(f"{policy.name:15} {plain[1] / seconds:.3f} times as fast as plain decoding")
