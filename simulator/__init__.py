"""Time without a GPU: one request after another (replay), a server (serving), environments (envs)
to learn in.
"""
