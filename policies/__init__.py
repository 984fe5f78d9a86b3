"""How far to draft: the contract (base), its conformance suite (contract), the controllers
(shelf).
"""
