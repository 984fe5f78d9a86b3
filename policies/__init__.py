"""How far to draft: the contract (base), its conformance suite (contract), the controllers
(shelf).
"""

PROJECT = "gammalab"  # other projects have packages of this name; see real_backend/__init__.py
