"""Torch lives here: data, networks, quantizer, objectives, training, evaluation. Knows no store and no Ray."""
