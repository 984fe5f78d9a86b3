"""How far to draft: the contract (base), its conformance suite (conformance), the controllers, room
by room, and their names (registry).
"""

PROJECT = "gammalab"  # other projects have packages of this name; see real_backend/__init__.py
