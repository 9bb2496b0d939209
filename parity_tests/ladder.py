"""The ladder: its rungs, from random bits to whole samples, each a measurement and its budget.

`python -m parity_tests.ladder` prints the measured errors beside their budgets.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np
import torch

from jax_ddpm.spec.diffusion_config import SamplerConfig
from parity_tests import (
    budgets,
    measures_batch_norm,
    measures_classifier,
    measures_classifier_guidance,
    measures_ddpm_conditional,
    measures_guidance,
    measures_inputs,
    measures_objectives,
    measures_registered,
    measures_self_condition,
    measures_training,
)
from parity_tests.measures import (
    NETWORK,
    bits,
    block,
    embedding,
    gradients,
    network,
    noising,
    normals,
    of_case,
    random,
    tables,
)
from parity_tests.measures_objectives import EDM, FLOW
from parity_tests.measures_sampling import (
    bounds,
    flow,
    network_bound,
    pixels,
    reverse_process,
    reverse_steps,
    reverse_steps_from_pure_noise,
)
from parity_tests.measures_training import (
    LEARNED,
    SMALL,
    TO_NOISE,
    broken_at_the_end,
    ema,
    fifty_losses,
    fifty_parameters,
    optimiser_step,
    other_widths,
    power_ema,
    skipped_step,
    trained_parameters,
)
from parity_tests.networks import CASES, LABELLED, LUCIDRAINS, VARIANTS


@dataclass(frozen=True)
class Rung:
    budget: float
    measure: Callable[[], float]


RUNGS = {
    "bits, uniforms, integers": Rung(0, bits),
    "normals": Rung(budgets.NORMAL_FLOAT32, normals),
    "schedule tables": Rung(0, tables),
    "time embedding": Rung(budgets.EMBEDDING_FLOAT32, embedding),
    "noising": Rung(budgets.NOISING_FLOAT32, noising),
    "ConvBlock, float64": Rung(budgets.NETWORK_FLOAT64, block),
    "network, random weights, float32": Rung(budgets.NETWORK_FLOAT32, lambda: network(random(NETWORK, 1))),
    "network, trained weights, float32": Rung(budgets.NETWORK_FLOAT32, lambda: network(trained_parameters)),
    "network, random weights, float64": Rung(
        budgets.NETWORK_FLOAT64, lambda: network(random(NETWORK, 1), dtype=np.float64)
    ),
    "network, trained weights, float64": Rung(
        budgets.NETWORK_FLOAT64, lambda: network(trained_parameters, dtype=np.float64)
    ),
    "gradients, float64": Rung(budgets.GRADIENT_FLOAT64, lambda: gradients(random(NETWORK, 1))),
    "gradients, float32": Rung(budgets.GRADIENT_FLOAT32, lambda: gradients(random(NETWORK, 1), dtype=np.float32)),
    "one Adam step, float64": Rung(budgets.UPDATE_FLOAT64, optimiser_step),
    "one AdamW step, clipped, float64": Rung(
        budgets.UPDATE_FLOAT64, lambda: optimiser_step(optimizer="adamw", weight_decay=0.01, clip_norm=0.5)
    ),
    "one Adam step, learned variance, float64": Rung(budgets.UPDATE_FLOAT64, lambda: optimiser_step(LEARNED)),
    "one Adam step, zero terminal SNR, float64": Rung(budgets.UPDATE_FLOAT64, lambda: optimiser_step(TO_NOISE)),
    "one Adam step with label dropout, float64": Rung(
        budgets.UPDATE_FLOAT64, lambda: optimiser_step(measures_training.LABELLED)
    ),
    "EMA after three steps, float64": Rung(budgets.UPDATE_FLOAT64, ema),
    "power EMA after three steps, float64": Rung(budgets.UPDATE_FLOAT64, power_ema),
    "power EMA with a skipped step, float64": Rung(budgets.UPDATE_FLOAT64, lambda: power_ema(broken_at_the_end)),
    "power EMA of other widths, float64": Rung(budgets.OTHER_WIDTHS, other_widths),
    "a skipped step among three, float64": Rung(budgets.UPDATE_FLOAT64, skipped_step),
    "learning rates": Rung(budgets.RATE, measures_training.learning_rates),
    "50 training steps, losses, float32": Rung(budgets.FIFTY_LOSSES, fifty_losses),
    "50 training steps, parameters, float32": Rung(budgets.FIFTY_PARAMETERS, fifty_parameters),
    "one reverse step, all kinds": Rung(budgets.REVERSE_STEP_FLOAT32, reverse_steps),
    "one reverse step, zero terminal SNR": Rung(budgets.REVERSE_STEP_FLOAT32, reverse_steps_from_pure_noise),
    "1000-step samples, float32": Rung(budgets.SAMPLES_FLOAT32, reverse_process),
    "1000-step samples, 8-bit pixels, float32": Rung(budgets.PIXELS_FLOAT32, pixels),
    "1000-step samples, float64": Rung(budgets.SAMPLES_FLOAT64, lambda: reverse_process(np.float64)),
    "1000-step samples, 8-bit pixels, float64": Rung(0, lambda: pixels(np.float64)),
}

NOT_SQUARE = {  # layer_norm takes 28x28 only
    "strided": (8, 16),
    "attention": (6, 10),
    "ddpm": (6, 10),
    "adm": (6, 10),
    "lucidrains": (6, 10),
    "simple_unet": (8, 12),
    "context_unet": (8, 16),
    "superminddpm": (5, 7),
    "annotated": (6, 10),
    "annotated_convnext": (6, 10),
    "ddpm_conditional": (8, 16),
}
for name, case in CASES.items():
    if name == "conv_block":
        continue
    for rung, measure, dtype, budget in (
        ("outputs, float32", network, np.float32, budgets.NETWORK_FLOAT32),
        ("outputs, float64", network, np.float64, budgets.NETWORK_FLOAT64),
        ("gradients, float32", gradients, np.float32, budgets.GRADIENT_FLOAT32_OF.get(name, budgets.GRADIENT_FLOAT32)),
        ("gradients, float64", gradients, np.float64, budgets.GRADIENT_FLOAT64),
    ):
        RUNGS[f"{name}: {rung}"] = Rung(budget, partial(of_case, measure, case, dtype, NOT_SQUARE.get(name)))

for name, case in {**VARIANTS, **LABELLED, **LUCIDRAINS}.items():
    for rung, measure, budget in (
        ("outputs, float64", network, budgets.NETWORK_FLOAT64),
        ("gradients, float64", gradients, budgets.GRADIENT_FLOAT64),
    ):
        RUNGS[f"{name}: {rung}"] = Rung(budget, partial(of_case, measure, case, np.float64))

RUNGS["10-step DDPM, not square, float32"] = Rung(
    budgets.FEW_STEPS_FLOAT32, partial(reverse_process, sampler=SamplerConfig("ddpm", 10), size=(4, 12))
)

RUNGS["BatchNorm in training, float64"] = Rung(budgets.NETWORK_FLOAT64, measures_batch_norm.training_passes)

RUNGS["bilinear interpolation, float64"] = Rung(budgets.NETWORK_FLOAT64, measures_ddpm_conditional.interpolation)
RUNGS["labels without a null row, float64"] = Rung(budgets.NETWORK_FLOAT64, measures_ddpm_conditional.labels)

RUNGS["guided predictions, float64"] = Rung(budgets.GUIDED_FLOAT64, measures_guidance.predictions)
RUNGS["guided samples, float64"] = Rung(budgets.GUIDED_FLOAT64, measures_guidance.samples)
RUNGS["guided edits, float64"] = Rung(budgets.GUIDED_FLOAT64, measures_guidance.edits)
RUNGS["bits per dimension with labels, float64"] = Rung(budgets.BOUND_FLOAT64, measures_guidance.bits)

RUNGS["classifiers of noisy images, float32"] = Rung(
    budgets.CLASS_GRADIENT_FLOAT32, partial(measures_classifier_guidance.networks, np.float32)
)
RUNGS["classifiers of noisy images, float64"] = Rung(budgets.NETWORK_FLOAT64, measures_classifier_guidance.networks)
RUNGS["classifier-guided samples, float64"] = Rung(budgets.GUIDED_FLOAT64, measures_classifier_guidance.samples)

RUNGS["registered parts, losses, float64"] = Rung(budgets.REGISTERED_FLOAT64, measures_registered.losses)
RUNGS["registered parts, samples, float64"] = Rung(budgets.REGISTERED_FLOAT64, measures_registered.samples)

RUNGS["self-conditioned outputs, float64"] = Rung(budgets.NETWORK_FLOAT64, measures_self_condition.outputs)
RUNGS["self-conditioned samples, float64"] = Rung(budgets.GUIDED_FLOAT64, measures_self_condition.samples)
RUNGS["self-conditioned edits, float64"] = Rung(budgets.GUIDED_FLOAT64, measures_self_condition.edits)
RUNGS["self-conditioned training, float64"] = Rung(budgets.UPDATE_FLOAT64, measures_self_condition.training)

RUNGS["data ranges and times, losses, float64"] = Rung(budgets.LOSS[np.float64], measures_inputs.losses)
RUNGS["data ranges and times, bits, float64"] = Rung(budgets.BOUND_FLOAT64, measures_inputs.bits)
RUNGS["data ranges and times, samples, float64"] = Rung(budgets.SAMPLING[np.float64], measures_inputs.samples)

RUNGS["bits per dimension, float64"] = Rung(budgets.BOUND_FLOAT64, bounds)
RUNGS["bits per dimension, network and drawn t, float64"] = Rung(budgets.BOUND_FLOAT64, network_bound)
RUNGS["bits per dimension by the ODE, float64"] = Rung(budgets.BOUND_FLOAT64, flow)

RUNGS["classifier, features, float32"] = Rung(
    budgets.CLASSIFIER_FLOAT32, partial(measures_classifier.features, dtype=np.float32)
)
RUNGS["classifier, features, float64"] = Rung(budgets.NETWORK_FLOAT64, measures_classifier.features)
RUNGS["classifier, gradients, float64"] = Rung(budgets.GRADIENT_FLOAT64, measures_classifier.gradients)

RUNGS["losses and loss weights, all objectives, float64"] = Rung(budgets.LOSS[np.float64], measures_objectives.losses)
RUNGS["gradients, edm and flow, float64"] = Rung(budgets.GRADIENT_FLOAT64, measures_objectives.gradients)
RUNGS["one solver step, edm and flow"] = Rung(budgets.REVERSE_STEP_FLOAT32, measures_objectives.solver_steps)
for config in (EDM, FLOW):
    RUNGS[f"one Adam step, {config.objective}, float64"] = Rung(
        budgets.UPDATE_FLOAT64, partial(optimiser_step, replace(SMALL, diffusion=config))
    )
    for sampler in (SamplerConfig("heun", 6), SamplerConfig("midpoint", 6), SamplerConfig("euler", 6)):
        RUNGS[f"6-step {sampler.sampler}, {config.objective}, float64"] = Rung(
            budgets.SAMPLING[np.float64], partial(measures_objectives.samples, config, sampler)
        )

for name, sampler in {
    "50-step DDPM": SamplerConfig("ddpm", 50),
    "50-step DDIM": SamplerConfig("ddim", 50, "linspace"),
    "50-step DDIM, eta 0.5": SamplerConfig("ddim", 50, "leading", eta=0.5),
    "20-step DPM-Solver++": SamplerConfig("dpmpp", 20, "logsnr"),
    "10-step Heun": SamplerConfig("heun", 10),
    "20-step Euler": SamplerConfig("euler", 20),
}.items():
    RUNGS[f"{name}, float32"] = Rung(budgets.FEW_STEPS_FLOAT32, partial(reverse_process, sampler=sampler))
    RUNGS[f"{name}, 8-bit pixels"] = Rung(budgets.PIXELS_FLOAT32, partial(pixels, sampler=sampler))

SLOW = {  # Compiling them takes long. For each, a faster rung of its kind is tested by default.
    *(  # test_golden has strided, layer_norm and attention in float32, too
        f"{name}: {rung}, float{bits}"
        for name, widths in {
            "strided": (32, 64),
            "layer_norm": (32, 64),
            "attention": (32,),
            "ddpm": (32,),
            "lucidrains": (32,),
            "adm": (32, 64),
            "simple_unet": (32,),
            "context_unet": (32, 64),
            "superminddpm": (32,),
            "annotated": (32, 64),
            "annotated_convnext": (32, 64),
            "ddpm_conditional": (32, 64),
        }.items()
        for bits in widths
        for rung in ("outputs", "gradients")
    ),
    *(
        f"{name}: {rung}, float64"
        for name in (*VARIANTS, *LABELLED, *LUCIDRAINS)
        if name not in ("ddpm with groups of its middle, mish", "conv_block with labels")
        for rung in ("outputs", "gradients")
    ),
    *(f"one Adam step, {objective}, float64" for objective in ("edm", "flow")),
    *(f"6-step {sampler}, float64" for sampler in ("midpoint, edm", "euler, edm", "heun, flow", "euler, flow")),
    "classifiers of noisy images, float32",
    "1000-step samples, 8-bit pixels, float32",
    "one Adam step, learned variance, float64",
    "1000-step samples, float64",
    "1000-step samples, 8-bit pixels, float64",
    "10-step DDPM, not square, float32",
    "data ranges and times, bits, float64",
    *(
        f"{sampler}, {what}"
        for sampler in ("50-step DDIM", "10-step Heun", "20-step Euler")
        for what in ("float32", "8-bit pixels")
    ),
}


def main():
    torch.set_num_threads(1)  # its threads and JAX's, side by side, make it ten times slower
    print(f"On {jax.devices()[0]}; the budgets are for CPUs.")
    print(f"{'rung':45} {'measured':>10} {'budget':>10}")
    for name, rung in RUNGS.items():
        print(f"{name:45} {rung.measure():10.2g} {rung.budget:10.2g}", flush=True)
        jax.clear_caches()  # compiled programs of all rungs together take some ten gigabytes


if __name__ == "__main__":
    main()
