"""The OpenAI dialect: chat, completions, models, and the tokenizer routes that other servers offer beside it."""
