"""A tiny network learns how many tokens to draft, on the shipped recording."""

import gymnasium
import numpy as np
from stable_baselines3 import PPO

env = gymnasium.make("simulator.envs:gammalab/Round-v0", reward="average")
model = PPO("MlpPolicy", env, n_steps=256, batch_size=64, gamma=1.0, seed=0, device="cpu")
model.learn(total_timesteps=512)

obs, info = env.reset(seed=1)
rewards = []
for _ in range(200):
    action, _ = model.predict(obs, deterministic=True)
    obs, reward, terminated, truncated, info = env.step(int(action))
    rewards.append(reward)
    if terminated or truncated:
        obs, info = env.reset()
print(f"mean reward {np.mean(rewards):.3f} a round after {model.num_timesteps} steps")
