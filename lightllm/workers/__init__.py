"""What each process of a server runs: frontend, engine loop, detokenizer, tensor-parallel ranks."""
