"""The tasks of the demo model, one module each. Every module offers `exchange(rng)` and knows nothing of the others."""
