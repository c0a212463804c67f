"""Config → trained state. `from train import load_run` opens a run anywhere; JAX is imported only then."""


def __getattr__(name: str):
    if name in ("Run", "load_run"):
        from train import run

        return getattr(run, name)
    raise AttributeError(f"module 'train' has no attribute {name!r}")
