"""The networks. Importing this package first makes XLA safe on the CPU (see `_guard_cpu_reductions`)."""

import os
from importlib.metadata import version


def _guard_cpu_reductions() -> None:
    """jaxlib 0.10 silently miscompiles some fused reductions on CPU (jax issue 39103); 0.12 is clean.

    XLA reads its flags when the first device is touched, so this works after `import jax` too.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    flags = os.environ.get("XLA_FLAGS", "")
    if version("jaxlib").startswith("0.10.") and flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


_guard_cpu_reductions()
