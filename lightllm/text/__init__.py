"""Text in and out of the engine: tokenizer, chat templates, incremental detokenizer, stop strings, parsers.

This floor knows no processes, no HTTP and no torch. It imports `tokenizers` at once and jinja2 only when a
chat template is compiled.
"""
