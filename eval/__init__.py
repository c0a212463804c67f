"""Trained state → numbers (`python -m eval`), text (`python -m eval.generate`), pictures (`eval.report`)."""
