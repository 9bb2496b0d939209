"""How far apart two implementations of the same thing may be, and why. The only place for tolerances of parity.

Relative budgets are of the largest magnitude of the reference array, unless a test says otherwise. Measured values are
the largest seen on x86-64 CPUs; a budget is a few times that, and is investigated before it is widened.
"""

import numpy as np

# Against golden numbers ---------------------------------------------------------------------------------------

# Outputs and gradients of networks in float64; measured at most 8.1e-15.
GOLDEN_NETWORK_FLOAT64 = 1e-12
# The same in float32. attention: phases t f reach thousands of radians, where float32 is 2.4e-4 apart; measured 1.0e-5.
# The others: measured at most 1e-6, 3.2e-6, 1.4e-6 and, for adm, 2.8e-6 (gradients).
GOLDEN_NETWORK_FLOAT32 = {"conv_block": 5e-6, "strided": 5e-6, "attention": 3e-5, "layer_norm": 5e-6, "adm": 5e-6}
# Relative. The golden schedule was accumulated in float32 over 1000 factors; ours is rounded once. Measured 3.9e-7.
GOLDEN_SCHEDULE = 1e-6
# Relative. Posterior variances near t = 1 subtract nearly equal float32 numbers in the golden file, as its description
# says. Measured 1.6e-4 and 1.73e-3.
GOLDEN_POSTERIOR = {"1e-4": 2e-4, "1e-5": 2e-3}
# Absolute. x_t from the float32 schedule; measured 2.6e-6.
GOLDEN_NOISING = 6e-6
# Absolute. A frequency whose last bit differs (2 of 128 at d = 256) shifts t = 999 by 6e-5. Measured 2.9e-5.
GOLDEN_EMBEDDING = 6e-5
# Of the largest magnitude, at least 1. 1000 steps with tables that differ by GOLDEN_SCHEDULE; unclamped, the formula
# for eps lets x grow to 267. Measured 6.3e-6.
GOLDEN_REVERSE = 2e-5

# Against the schedulers of the diffusers package, states of float64 relative to the largest magnitude, at least 1. Its
# tables are replaced by float64 ones. Measured 8e-16 (DDPM, DDIM); 2.8e-7 for its solvers, whose state is float32.
SCHEDULERS = 1e-13
SOLVERS = 1e-6
# Betas rescaled to zero terminal SNR, absolute, float64. Measured 1.0e-15.
RESCALED_BETAS = 1e-13

# Between the frameworks ---------------------------------------------------------------------------------------

# Normals, absolute. float32: XLA's log1p errs by an ulp, which Giles' polynomial carries on; measured 4.8e-7 (an ulp
# beyond 4 standard deviations), and 0.94% of the numbers differ at all.
NORMAL_FLOAT32 = 1e-6
NORMAL_FLOAT32_UNEQUAL = 0.02
# float64: two accurate inverses of the same rounded argument; measured 4e-15.
NORMAL_FLOAT64 = 1e-13
# Noise for a (64, 32, 32, 1) batch must not dominate a step. Measured 4 ms.
NOISE_SECONDS = 0.020
# Absolute. Phases are equal; sin and cos are the two libraries'. Measured 6e-8.
EMBEDDING_FLOAT32 = 2e-7
# Two products and a sum, which XLA may fuse. Measured 0.
NOISING_FLOAT32 = 3e-7
# Network outputs: convolutions add up in other orders. Measured at most 1.5e-6 (random weights).
NETWORK_FLOAT32 = 1e-5
# The same in float64. Measured at most 4.4e-15.
NETWORK_FLOAT64 = 1e-12
# Gradients of every parameter, as a share of the largest of all. Measured at most 3.7e-14 (adm) and, in float32,
# 1.7e-6, without annotated.
GRADIENT_FLOAT64 = 1e-12
GRADIENT_FLOAT32 = 3e-6
# annotated: gradients of biases before a GroupNorm are sums that nearly cancel. On an AVX-512 CPU PyTorch is 2.6e-6 and
# JAX 3.4e-6 from float64, in opposite directions, and 2.1e-6 and 3.4e-6 on the same with AVX2. Measured 5.9e-6.
GRADIENT_FLOAT32_OF = {"annotated": 1.5e-5}
# Parameters or EMA after one to three optimiser steps in float64, in learning rates. optax computes 1 - beta^step and
# the rate in float32, torch in float64: 6e-8 of a step each. Measured 3e-9.
UPDATE_FLOAT64 = 5e-7
# Averages of other widths, combined from 32 snapshots of two averages of a random walk, against direct ones, as a share
# of the distance between the average and the last weights. It is the error of the profiles: measured 1.9e-3.
OTHER_WIDTHS = 4e-3
# 50 losses on real images, relative, float32: rounding grows along the training. Measured 5.5e-6.
FIFTY_LOSSES = 5e-5
# Parameters after them: root mean square distance as a share of the way from the start. Adam moves every parameter by
# about its learning rate, also where a gradient is zero but for rounding (biases before GroupNorm). Measured 1.7e-3.
FIFTY_PARAMETERS = 1e-2
# One reverse step from equal inputs. Measured 3e-7.
REVERSE_STEP_FLOAT32 = 1e-6
# Whole samples after 1000 steps, absolute, in [-1, 1]. Measured 1.1e-6 (6e-6 with the quick start's model).
SAMPLES_FLOAT32 = 3e-5
# The same after 10 to 50 steps of each sampler. Measured 2.2e-6.
FEW_STEPS_FLOAT32 = 1e-5
# The same with a real checkpoint of layer_norm, whose features are larger. Measured 5.0e-5 in 64 samples.
SAMPLES_REAL_CHECKPOINT = 2e-4
# The share of 8-bit pixels that differ, none by more than a level: x near a rounding edge. Measured 0.
PIXELS_FLOAT32 = 1e-3
# Measured 4.6e-15.
SAMPLES_FLOAT64 = 1e-11
# Likelihood of each image in bits per dimension, by the variational bound and by the ODE, relative. Measured 1.5e-15.
BOUND_FLOAT64 = 1e-13

# Guided predictions, and small pictures that are sampled or edited with guidance by a formula for a network, float64.
# Measured 1.0e-14.
GUIDED_FLOAT64 = 1e-12

# Logits of classifiers of noisy images and their gradients by x, float32: a pass and back. Measured 4.8e-6; each
# framework is up to 4.1e-6 from float64.
CLASS_GRADIENT_FLOAT32 = 2e-5

# Losses and 7-step samples with a registered schedule, objective and sampler, by a formula for a network, float64.
# Measured 5.7e-16.
REGISTERED_FLOAT64 = 1e-12

# Features of the evaluation's classifier, float32: the sums of three small layers in other orders. Measured 7.5e-8.
CLASSIFIER_FLOAT32 = 5e-7

# The twin's parts, by dtype ------------------------------------------------------------------------------------

# Elementwise formulas, relative to the largest magnitude: XLA fuses multiply-adds. Measured 2.7e-7 and 4.7e-16.
FORMULA = {np.float32: 5e-7, np.float64: 1e-15}
# sin and cos of phases up to 999, absolute: an ulp of each library. Measured 6e-8 and 6e-17.
EMBEDDING = {np.float32: 2e-7, np.float64: 4e-16}
# Networks, relative to the largest magnitude; convolutions sum in other orders. Measured 9e-7 and 1.5e-15.
NETWORK = {np.float32: 5e-6, np.float64: 1e-14}
# 40 reverse steps with a network, absolute, pictures within [-1, 1]. Measured 8e-7 and 4e-15.
SAMPLING = {np.float32: 5e-6, np.float64: 1e-13}
# Inversion, reconstruction, interpolation, img2img and inpainting of small pictures with a network, relative to the
# largest magnitude, at least 1. Measured 2.9e-6 and 1.5e-14 (interpolation).
EDITING = {np.float32: 1e-5, np.float64: 1e-13}
# Losses and gradient norms, relative: sums over the batch in other orders, and steps before. Measured 2.3e-6 and 7e-16.
LOSS = {np.float32: 1e-5, np.float64: 1e-14}
# Learning rates, relative: float32 in both, an ulp for the cosine. Measured 6e-8.
RATE = 1.2e-7
# Parameters after three steps, in learning rates. Adam divides by |gradient|, so where that is small its relative error
# shows; and optax rounds 1 - 0.999^step in float32. Measured 2.4e-4, and 6.4e-8, which is the learning rate's ulp.
UPDATE = {np.float32: 1e-3, np.float64: 2e-7}

# Between float32 and bfloat16 activations of one framework, as a share of the largest output: eight bits of mantissa.
BFLOAT16 = 0.1
# Between float32 and the same in float64, compiled or exported, as a share of the largest output: other kernels, such
# as the fused attention of eval mode. Measured 1.6e-5.
USAGE_FLOAT32 = 1e-4

# Against the diffusers package ----------------------------------------------------------------------------------------

# Outputs and gradients of UNet2DModels, relative to the largest magnitude: sums in other orders, and in float32 the
# package's own frequencies, which may differ in the last bit. Measured 1.1e-6 and 3.7e-15.
DIFFUSERS = {np.float32: 5e-6, np.float64: 1e-12}
# Betas, absolute: the package's are float32, ours float64. Measured 3e-8.
DIFFUSERS_BETAS = 1e-7
# The same for betas rescaled to zero terminal SNR, which it computes from float32 ratios. Measured 1.3e-6.
DIFFUSERS_RESCALED_BETAS = 4e-6
# 12 reverse steps with the same noise, as a share of the largest magnitude; the package's tables are float32 products.
# Measured 3.7e-6.
DIFFUSERS_SAMPLES = 2e-5

# TF32, simulated: operands of 10 bits after the point in every product, relative, outputs and gradients. Measured
# 7.1e-4 to 3.4e-3. Less than TF32_DIFFERS: nothing was rounded.
TF32 = 1e-2
TF32_DIFFERS = 1e-4
