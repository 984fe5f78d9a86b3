"""How the embedded pair was made: corpus and its tasks, model, optimisation, export, model card."""
