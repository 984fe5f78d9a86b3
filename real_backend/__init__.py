"""Time with real models: models, kvcache, llama, verify, engine, capture, measure, the embedded
pair.
"""
