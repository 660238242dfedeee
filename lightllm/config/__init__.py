"""Configuration: frozen dataclasses, the one home of every default. Flags, help and docs are made from them."""
