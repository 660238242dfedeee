"""From logits to tokens: bans, penalties and bias, temperature and filters, the draw, log-probabilities."""
