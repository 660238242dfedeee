"""How the bundled demo model is made: data generator, tokenizer, trainer, evaluator.

Nothing in here is installed with the package. Every step runs as `python -m tools.demo_model.<step>` from the
root of the repository; MODEL_CARD.md beside the checkpoint gives the commands in order.
"""
