"""The experiment: one frozen, validated object that says everything about a run. Imports no JAX."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from data.config import ByteBPE, CausalLM, DataConfig, Objective, SentencePiece, WordPiece
from data.task_config import TASKS, num_outputs
from model.config import TransformerConfig
from train.tuning_config import Frozen, Full, LastLayers, LoRA, Tuning  # noqa: F401  (imported from here)


class UserError(Exception):
    """Something the user can mend: `problems` are complete sentences, each naming the field, file or place."""

    def __init__(self, *problems: str):
        super().__init__("\n".join(problems))
        self.problems = problems


class _Part(BaseModel, frozen=True, extra="forbid", validate_default=True):
    """Immutable, typed, and closed to unknown fields."""


class _Schedule(_Part):
    warmup_steps: int = Field(0, ge=0, description="Steps of linear warm-up from 0 to the peak learning rate.")


class Constant(_Schedule):
    """The peak learning rate after warm-up."""

    kind: Literal["constant"] = "constant"


class Linear(_Schedule):
    """Straight line from the peak to `final_fraction` of it at the last step (BERT)."""

    kind: Literal["linear"] = "linear"
    final_fraction: float = Field(0.0, ge=0, le=1, description="Last learning rate as a fraction of the peak.")


class Cosine(_Schedule):
    """Half a cosine from the peak to `final_fraction` of it at the last step (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    final_fraction: float = Field(0.1, ge=0, le=1, description="Last learning rate as a fraction of the peak.")


class InverseSquareRoot(_Schedule):
    """peak * sqrt(warmup_steps / step) after warm-up (Vaswani et al. 2017, section 5.3)."""

    kind: Literal["inverse_square_root"] = "inverse_square_root"
    warmup_steps: int = Field(4000, ge=1, description="Steps of linear warm-up; also the time scale of the decay.")


class WarmupStableDecay(_Schedule):
    """The peak until `decay_steps` before the end, then a line to `final_fraction` of it (Hu et al. 2024)."""

    kind: Literal["warmup_stable_decay"] = "warmup_stable_decay"
    decay_steps: int = Field(100, ge=1, description="Steps of the final decay.")
    final_fraction: float = Field(0.0, ge=0, le=1, description="Last learning rate as a fraction of the peak.")


Schedule = Annotated[Constant | Linear | Cosine | InverseSquareRoot | WarmupStableDecay, Field(discriminator="kind")]


class _Optimizer(_Part):
    peak_learning_rate: float = Field(1e-3, gt=0, description="Learning rate after warm-up.")
    schedule: Schedule = Field(Cosine(), description="How the learning rate changes over the run.")
    clip_norm: float | None = Field(1.0, gt=0, description="Clip gradients to this global norm; none: never.")
    layer_decay: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Learning rates fall by this factor from layer to layer, down to the embeddings (ELECTRA: 0.8; "
        "see train.optimizer.layer_factors): none = one rate for all.",
    )


class Decayed(_Optimizer):
    """An optimizer with decoupled weight decay."""

    weight_decay: float = Field(0.1, ge=0, description="Decoupled weight decay, times the learning rate.")
    no_decay: tuple[str, ...] = Field(
        (r"(^|.*/)(bias|scale)",),
        description="Parameters that do not decay: patterns that must match a whole parameter path.",
    )


class SGD(_Optimizer):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the velocity; 0: plain SGD.")
    nesterov: bool = Field(False, description="Nesterov's form of momentum.")


class Adam(_Optimizer):
    """Kingma & Ba 2015."""

    kind: Literal["adam"] = "adam"
    b1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    b2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")


class AdamW(Decayed):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

    kind: Literal["adamw"] = "adamw"
    b1: float = Field(0.9, ge=0, lt=1, description="Decay of the first moment.")
    b2: float = Field(0.95, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(1e-8, gt=0, description="Added to the root of the second moment.")


class Adafactor(_Optimizer):
    """Factored second moments (Shazeer & Stern 2018); updates relative to the parameters' scale."""

    kind: Literal["adafactor"] = "adafactor"
    decay_rate: float = Field(0.8, gt=0, lt=1, description="Second-moment decay 1 - step^-decay_rate.")
    min_dim_size_to_factor: int = Field(128, gt=0, description="Smaller matrices keep full second moments.")


class Lion(Decayed):
    """Sign of an interpolated momentum (Chen et al. 2023)."""

    kind: Literal["lion"] = "lion"
    b1: float = Field(0.9, ge=0, lt=1, description="Interpolation for the update.")
    b2: float = Field(0.99, ge=0, lt=1, description="Decay of the momentum.")


class Muon(Decayed):
    """Orthogonalized momentum for the layers' matrices, AdamW for all else (Jordan et al. 2024).

    Updates are scaled to AdamW's root mean square (Liu et al. 2025), so one learning rate serves both.
    """

    kind: Literal["muon"] = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the momentum.")
    b1: float = Field(0.9, ge=0, lt=1, description="AdamW's decay of the first moment.")
    b2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of the second moment.")


Optimizer = Annotated[SGD | Adam | AdamW | Adafactor | Lion | Muon, Field(discriminator="kind")]


class Loss(_Part):
    """Cross entropy and its two usual additions."""

    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Weight of the uniform distribution in the targets.")
    z_loss: float = Field(0.0, ge=0, description="Weight of log(Z)^2, which keeps logits near 0 (PaLM: 1e-4).")
    function: str | None = Field(
        None,
        pattern=r"^.+\.py:\w+$",
        description="FILE.py:NAME, what is minimized instead: a function (logits, targets) → the loss of each target.",
    )

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.function and (self.label_smoothing or self.z_loss):
            raise ValueError("function stands in place of cross entropy: label_smoothing and z_loss must be 0")
        return self


MESH_AXES = ("data", "fsdp", "tensor")
RULES: dict[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "length": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "layers": (),
    "experts": (),
    "features": (),
    "sentences": (),
}


class Mesh(_Part):
    """How devices are arranged and which dim of an array lies along which axis of them."""

    data: int = Field(-1, description="Devices that split the batch and copy the parameters; -1: all that remain.")
    fsdp: int = Field(1, ge=1, description="Devices that split the batch and also the parameters.")
    tensor: int = Field(1, ge=1, description="Devices that split heads, feed-forward and vocabulary.")
    rules: dict[str, tuple[str, ...]] = Field(
        RULES, description='Mesh axes of each logical dim, for example {"vocab": []} to copy the vocabulary.'
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        problems = []
        if self.data == 0 or self.data < -1:
            problems.append(f"data={self.data} must be at least 1, or -1 for all remaining devices")
        if unknown := sorted(set(self.rules) - set(RULES)):
            problems.append(f"rules name unknown dims {unknown}; dims are {list(RULES)}")
        axes = {axis for rule in self.rules.values() for axis in rule}
        if unknown := sorted(axes - set(MESH_AXES)):
            problems.append(f"rules name unknown mesh axes {unknown}; axes are {list(MESH_AXES)}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Checkpointing(_Part):
    """When state is saved and what is kept."""

    every: int = Field(1000, gt=0, description="Steps between scheduled checkpoints; the last step has one, too.")
    keep_last: int = Field(2, gt=0, description="How many of the newest scheduled ones stay; the last saved does, too.")
    keep_best: int = Field(
        1, ge=0, description="How many checkpoints stay besides, the best by evaluation.metric on validation data."
    )
    verify: bool = Field(True, description="Check every file's and array's digest before a checkpoint is trusted.")


class Decoding(_Part):
    """How texts are written when a text-to-text task is scored."""

    beam_size: int = Field(1, gt=0, description="Hypotheses of beam search; 1: greedy.")
    length_penalty: float = Field(0.6, ge=0, description="Of beam search: alpha of Wu et al. (2016), equation 14.")
    coverage_penalty: float = Field(0.0, ge=0, description="Of beam search: beta of the same equation.")
    no_repeat_ngram: int = Field(0, ge=0, description="No n-gram of so many tokens is written twice; 0: all may be.")
    min_new_tokens: int = Field(0, ge=0, description="Texts are at least so long.")
    max_new_tokens: int | None = Field(
        None, gt=0, description="Texts are at most so long: none = data.target_length, or as long as the source may be."
    )
    first_token: str | None = Field(
        None, description="A token of the tokenizer that every text begins with: mBART's language; none: any."
    )


LOWER_IS_BETTER = ("loss", "perplexity", "bits_per_byte", "error")


def lower_is_better(metric: str) -> bool:
    """Whether a measure of `evaluation.metric` is good when low: losses, perplexities, errors."""
    return metric.endswith(LOWER_IS_BETTER)


class Evaluation(_Part):
    """What is measured during training and at its end."""

    every: int = Field(250, gt=0, description="Steps between evaluations; one more is made at the end.")
    batch_size: int | None = Field(None, gt=0, description="Examples per batch; none = the training batch_size.")
    max_batches: int | None = Field(None, gt=0, description="Validation batches per evaluation; none: all of them.")
    metric: str = Field(
        "loss",
        min_length=1,
        description="The validation measure by which a checkpoint is the best, such as accuracy; lower is better where "
        "its name ends in " + ", ".join(LOWER_IS_BETTER) + ".",
    )
    patience: int | None = Field(
        None, gt=0, description="End the run after so many evaluations without a better metric; none: at num_steps."
    )
    final: Literal["latest", "best"] = Field("latest", description="The checkpoint that is scored at the end.")
    average: int | None = Field(
        None, gt=1, description="Score instead the mean of the parameters of so many newest scheduled checkpoints."
    )
    decoding: Decoding = Field(Decoding(), description="How texts are written for scores.")
    prompts: tuple[str, ...] = Field(("",), description="Texts continued at the end of the run and in its report.")
    sample_tokens: int = Field(200, ge=0, description="New tokens per prompt; 0: no samples.")
    temperature: float = Field(0.8, ge=0, description="Of those samples; 0: greedy.")

    @property
    def final_step(self) -> str:
        """The checkpoint that is scored at the end, as `load_run` takes it."""
        return self.final if self.average is None else f"average:{self.average}"


# Objective → the stacks that can learn it.
_STACKS = {
    "causal_lm": ("decoder",),
    "prefix_lm": ("decoder", "encoder_decoder"),
    "masked_lm": ("encoder",),
    "replaced_tokens": ("encoder",),
    "span_corruption": ("encoder_decoder", "decoder"),
    "ul2": ("encoder_decoder", "decoder"),
    "text_infilling": ("encoder_decoder", "decoder"),
    "gap_sentences": ("encoder_decoder", "decoder"),
    "classification": ("encoder",),
    "regression": ("encoder",),
    "tagging": ("encoder",),
    "span_answering": ("encoder",),
    "text_to_text": ("encoder_decoder", "decoder"),
    "dialogue": ("decoder",),
}


class Experiment(_Part):
    """One run of one variant of one paper, completely."""

    name: str = Field("experiment", min_length=1, description="Shown in lists and used for the run directory.")
    run_dir: str | None = Field(None, description="Run directory; none: runs/NAME.")
    seed: int = Field(0, ge=0, description="Of initialization, data order and dropout.")
    num_steps: int = Field(1000, gt=0, description="Optimizer steps of the whole run.")
    batch_size: int = Field(32, gt=0, description="Examples per optimizer step, over all devices.")
    accumulation_steps: int = Field(1, gt=0, description="Parts the batch is computed in, one after another.")
    model: TransformerConfig = Field(TransformerConfig(), description="The network.")
    objective: Objective = Field(CausalLM(), description="What is predicted from what.")
    data: DataConfig = Field(DataConfig(), description="Text, tokens and batches.")
    optimizer: Optimizer = Field(AdamW(), description="The optimizer and its learning rate.")
    tuning: Tuning = Field(Full(), description="Which parameters are trained.")
    loss: Loss = Field(Loss(), description="What is minimized.")
    mesh: Mesh = Field(Mesh(), description="Devices and sharding.")
    checkpoint: Checkpointing = Field(Checkpointing(), description="Saving.")
    evaluation: Evaluation = Field(Evaluation(), description="Measuring.")
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="Keep an exponential moving average of the parameters and evaluate that."
    )
    init_from: str | None = Field(None, description="Run directory whose parameters a new run starts from.")
    log_every: int = Field(10, gt=0, description="Steps between lines of metrics.")
    max_nonfinite_steps: int = Field(
        10, gt=0, description="Stop after this many skipped steps in a row with a non-finite loss or gradient."
    )
    peak_tflops: float | None = Field(
        None, gt=0, description="Peak TFLOP/s of one device, for utilization; none: looked up by device name."
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        problems = []
        tokenizer, model = self.data.tokenizer, self.model
        if isinstance(tokenizer, SentencePiece | WordPiece | ByteBPE) and tokenizer.path is None:
            if tokenizer.vocab_size > model.vocab_size:
                problems.append(
                    f"data.tokenizer.vocab_size={tokenizer.vocab_size} is larger than "
                    f"model.vocab_size={model.vocab_size}"
                )
        problems += [*self._unfit_objective(), *self._unfit_parameters()]
        problems += [*self._unfit_evaluation(), *self._unfit_decoding()]
        for field in ("length", "target_length"):
            if (length := getattr(self.data, field)) is not None and length > model.max_length:
                problems.append(f"data.{field}={length} is longer than model.max_length={model.max_length}")
        if self.batch_size % self.accumulation_steps:
            problems.append(
                f"accumulation_steps={self.accumulation_steps} does not divide batch_size={self.batch_size}"
            )
        schedule = self.optimizer.schedule
        if schedule.warmup_steps + getattr(schedule, "decay_steps", 0) > self.num_steps:
            problems.append(
                f"optimizer.schedule.warmup_steps={schedule.warmup_steps} (with the decay) is more than "
                f"num_steps={self.num_steps}"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unfit_objective(self) -> list[str]:
        """Why the model's stack cannot learn the objective."""
        kind, stacks = self.objective.kind, _STACKS[self.objective.kind]
        if self.model.stack not in stacks:
            return [f"objective.kind={kind} needs model.stack={' or '.join(stacks)}, not {self.model.stack}"]
        if self.loss.function and kind == "span_answering":
            return ["loss.function: objective.kind=span_answering has no loss of one's own"]
        outputs = num_outputs(self.objective)
        if outputs not in (None, self.model.num_labels):
            return [f"objective.kind={kind} needs model.num_labels={outputs} here, not {self.model.num_labels}"]
        return []

    def _unfit_parameters(self) -> list[str]:
        """Why parameters cannot be told apart by their layer as the tuning or the optimizer asks for."""
        problems, model = [], self.model
        if self.optimizer.layer_decay is not None and model.share_layers:
            problems.append("optimizer.layer_decay needs layers of their own; model.share_layers has one for all")
        if isinstance(self.tuning, LastLayers):
            counts = [model.num_layers] + [model.count_of_encoder_layers] * (model.stack == "encoder_decoder")
            if model.share_layers:
                problems.append("tuning.kind=last_layers needs layers of their own; model.share_layers has one for all")
            elif self.tuning.count > min(counts):
                problems.append(f"tuning.count={self.tuning.count} is more than the {min(counts)} layers of the model")
        return problems

    def _unfit_evaluation(self) -> list[str]:
        """Why the checkpoint that is to be scored at the end would not be there."""
        problems, evaluation, checkpoint = [], self.evaluation, self.checkpoint
        if evaluation.final == "best" and evaluation.average is not None:
            problems.append("evaluation.final=best and evaluation.average exclude each other; leave one out")
        if evaluation.final == "best" and not checkpoint.keep_best:
            problems.append("evaluation.final=best needs checkpoint.keep_best of at least 1, not 0")
        if evaluation.average is not None:
            if evaluation.patience is not None:
                problems.append("evaluation.patience ends after the best step, so evaluation.average cannot be of use")
            available = min(checkpoint.keep_last, -(-self.num_steps // checkpoint.every))
            if evaluation.average > available:
                problems.append(
                    f"evaluation.average={evaluation.average} is more than the {available} newest checkpoints that are "
                    "there at the end; see checkpoint.keep_last, checkpoint.every and num_steps"
                )
        return problems

    def _unfit_decoding(self) -> list[str]:
        """Why texts cannot be written as evaluation.decoding asks for, or what of it nothing would read."""
        problems, decoding = [], self.evaluation.decoding
        if self.objective.kind != "text_to_text":
            return ["evaluation.decoding is for objective.kind=text_to_text alone"] if decoding != Decoding() else []
        if decoding.coverage_penalty and decoding.beam_size == 1:
            problems.append("evaluation.decoding.coverage_penalty is of beam search; it needs a beam_size above 1")
        if decoding.coverage_penalty and self.model.stack == "decoder":
            problems.append("evaluation.decoding.coverage_penalty needs model.stack=encoder_decoder, not decoder")
        longest = decoding.max_new_tokens or self.data.target_length or self.data.length
        if decoding.min_new_tokens > longest:
            problems.append(
                f"evaluation.decoding.min_new_tokens={decoding.min_new_tokens} is more than the {longest} tokens "
                "that a text may have; see max_new_tokens"
            )
        return problems

    @property
    def is_task(self) -> bool:
        """Whether it learns from labelled records."""
        return isinstance(self.objective, TASKS)

    @property
    def directory(self) -> str:
        """`run_dir`, resolved."""
        return self.run_dir or "runs/" + self.name.replace(":", "-")


MAY_CHANGE_ON_RESUME = (
    "run_dir",
    "log_every",
    "peak_tflops",
    "mesh",
    "checkpoint",
    "evaluation",
    "model.layer_loop",
    "model.remat",
    "model.attention_implementation",
    "data.cache_dir",
    "data.tokenizer_processes",
    "data.num_workers",
    "data.prefetch",
)
"""Fields that change how a run is computed or watched, but not what it computes."""


def changed_fields(old: Experiment, new: Experiment) -> list[tuple[str, object, object]]:
    """Dotted path, old and new value of each field that must not differ within one run."""
    missing = object()

    def walk(path: str, a: object, b: object) -> list[tuple[str, object, object]]:
        if path in MAY_CHANGE_ON_RESUME or a == b:
            return []
        if isinstance(a, dict) and isinstance(b, dict):
            keys = list(a) + [key for key in b if key not in a]
            prefix = f"{path}." if path else ""
            return [d for key in keys for d in walk(prefix + key, a.get(key, missing), b.get(key, missing))]
        return [(path, "(absent)" if a is missing else a, "(absent)" if b is missing else b)]

    return walk("", old.model_dump(mode="json"), new.model_dump(mode="json"))
