"""Importing the model package keeps XLA from miscompiling reductions, also when JAX was imported first."""

import os
import subprocess
import sys
from pathlib import Path

CODE = """
import jax, jax.numpy as jnp
import model
loss = jax.grad(lambda w, x: jnp.square(jax.nn.gelu(x @ w)).sum())
program = jax.jit(loss).lower(jnp.ones((256, 256)), jnp.ones((256, 256))).compile().as_text()
print(jax.__version__, "__ynn_fusion" in program)
"""


def test_no_unsafe_fusion_on_cpu():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    ended = subprocess.run(
        [sys.executable, "-c", CODE], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    version, fused = ended.stdout.split()
    assert fused == "False" or not version.startswith("0.10."), ended.stderr
