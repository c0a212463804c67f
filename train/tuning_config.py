"""Which parameters a run trains. Imports no JAX."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


class _Part(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Immutable, typed, and closed to unknown fields."""


class Full(_Part):
    """All parameters are trained."""

    kind: Literal["full"] = "full"


class Frozen(_Part):
    """Only some parameters are trained: by default the heads of an encoder, which itself stays as it is."""

    kind: Literal["frozen"] = "frozen"
    train: tuple[str, ...] = Field(
        (r"heads/.*",), min_length=1, description="What is trained: patterns that must match a whole parameter path."
    )


class LastLayers(_Part):
    """Only the last layers of the stack (of both, in an encoder-decoder), its last norm and the heads are trained.

    A head that is tied to the embeddings (model.tie_embeddings) stays as it is, with them. With
    model.layer_loop=unroll, what the frozen layers below need not compute is left out, too.
    """

    kind: Literal["last_layers"] = "last_layers"
    count: int = Field(2, gt=0, description="How many layers of each stack are trained.")


class LoRA(_Part):
    """Low-rank additions to frozen kernels (Hu et al. 2021): kernel + alpha / rank * a b; heads/ is trained as it is.

    `a` starts random and `b` at 0, so that training starts from the model as it was.
    """

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, gt=0, description="Inner width of the additions.")
    alpha: float = Field(16.0, gt=0, description="The additions are multiplied by alpha / rank.")
    targets: tuple[str, ...] = Field(
        (r".*attention/(query|value)/kernel",),
        min_length=1,
        description="Kernels that get an addition: patterns that must match a whole parameter path.",
    )
    also_train: tuple[str, ...] = Field(
        (), description="More parameters that are trained as they are: patterns, such as .*/bias."
    )


Tuning = Annotated[Full | Frozen | LastLayers | LoRA, Field(discriminator="kind")]
