"""Which slot holds which token: the free stack, the prefix tree, and the ledger that adds them up. No tensors."""
