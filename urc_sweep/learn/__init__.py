"""Torch lives here: data, networks, quantizer, objectives, training, evaluation. Knows no store, no Ray, no plan order."""
