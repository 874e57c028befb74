"""Inference with numpyro models: amortized posteriors."""
