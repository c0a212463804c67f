"""Text to batches: sources → cleaning → tokenizer → token cache → packed windows → examples of an objective.

And of a task: records → checked fields → tokens → examples → batches. Nothing here imports jax or any other package
of this repository. Start reading at `config.py`, then `pipeline.py`, which strings the other files together.
"""
