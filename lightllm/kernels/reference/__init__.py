"""Plain torch implementations of every op. They define what the ops mean, and they are the CPU backend."""
