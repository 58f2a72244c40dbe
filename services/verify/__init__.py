"""Proof that a model is what it claims to be: digests, recomputed rows and the logits of the whole model."""
