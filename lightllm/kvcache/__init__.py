"""The tensors that hold keys and values, one row per token slot and layer."""
