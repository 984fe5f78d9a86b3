"""The choice of gamma as Gymnasium environments. Importing this package registers them; so does
naming it, in a process that has imported nothing else of ours:

    import gymnasium
    env = gymnasium.make("simulator.envs:gammalab/Round-v0", trace="t.parquet", timing="t.json")

gammalab/Round-v0: one step is one round, the action how many tokens to draft. gammalab/Token-v0:
one step is one drafted token, the action whether to draft it (both round_token). gammalab/Serve-v0:
one step is one iteration of a batch (serve). gammalab/Shape-v0: one step is one round, the action
which draft tree of a menu, and how deep (shape). make_vec gives all but Serve-v0 as thousands of
lanes in one compiled call (vector).
"""

import gymnasium

gymnasium.register(
    "gammalab/Round-v0",
    entry_point="simulator.envs.round_token:RoundEnv",
    vector_entry_point="simulator.envs.vector:RoundVectorEnv",
    max_episode_steps=4096,
)
gymnasium.register(
    "gammalab/Token-v0",
    entry_point="simulator.envs.round_token:TokenEnv",
    vector_entry_point="simulator.envs.vector:TokenVectorEnv",
    max_episode_steps=65536,
)
gymnasium.register(
    "gammalab/Shape-v0",
    entry_point="simulator.envs.shape:ShapeEnv",
    vector_entry_point="simulator.envs.shape:ShapeVectorEnv",
    max_episode_steps=4096,
)
gymnasium.register(
    "gammalab/Serve-v0", entry_point="simulator.envs.serve:ServeEnv", max_episode_steps=1 << 20
)
