"""What a run attends to, builds on and stores: numbers from one call, a picture or a page from another.

    from eval import interpret
    from train import load_run

    run = load_run("runs/minilm")
    reading = interpret.read(run, "The cat sat on the mat.")
    interpret.attention(run, reading)                    # [layers, heads, query, key]
    interpret.write_attention_page(run, reading, "attention.html")

Everything is built on `model.taps`: what is read or changed has an address, the path of its module's parameters.
"""

from eval.interpret.attention import attention, flow, rollout
from eval.interpret.attribution import Attribution, gradient_times_input, integrated_gradients
from eval.interpret.causes import Effects, head_effects, layer_effects
from eval.interpret.lenses import Lens, logit_lens, train_tuned_lens, tuned_lens
from eval.interpret.pictures import (
    draw_attention,
    draw_attribution,
    draw_effects,
    draw_lens,
    draw_map,
    draw_similarity,
)
from eval.interpret.probes import Probe, Unit, linear_cka, linear_probes, similarity, top_activations
from eval.interpret.reading import Reading, Target, read
from eval.interpret.vectors import flat_map, induction_scores, neighbours
from eval.interpret.viewer import write_attention_page

__all__ = [
    "Attribution",
    "Effects",
    "Lens",
    "Probe",
    "Reading",
    "Target",
    "Unit",
    "attention",
    "draw_attention",
    "draw_attribution",
    "draw_effects",
    "draw_lens",
    "draw_map",
    "draw_similarity",
    "flat_map",
    "flow",
    "gradient_times_input",
    "head_effects",
    "induction_scores",
    "integrated_gradients",
    "layer_effects",
    "linear_cka",
    "linear_probes",
    "logit_lens",
    "neighbours",
    "read",
    "rollout",
    "similarity",
    "top_activations",
    "train_tuned_lens",
    "tuned_lens",
    "write_attention_page",
]
