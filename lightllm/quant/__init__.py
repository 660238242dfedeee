"""Weight schemes: how a linear layer's weight is stored, loaded and applied."""
