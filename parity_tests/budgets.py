"""How far apart two implementations of the same thing may be, and why. The only place for tolerances of parity.

Relative budgets are of the largest magnitude of the reference array, unless a test says otherwise. Measured values are
the largest seen on x86-64 CPUs; a budget is a few times that, and is investigated before it is widened.
"""

# Against golden numbers

# Golden network outputs and gradients are float64 (magnitudes around 2); measured 8e-15.
GOLDEN_NETWORK_FLOAT64 = 1e-9
# The same in float32, relative; measured 1.2e-6.
GOLDEN_NETWORK_FLOAT32 = 1e-5
# The golden schedule was accumulated in float32 over 1000 factors; ours is rounded once. Measured 1.5e-6 relative.
GOLDEN_SCHEDULE = 5e-6
# Posterior variances near t = 1 subtract nearly equal float32 numbers in the golden file (its README says so).
GOLDEN_POSTERIOR = {"1e-4": 2e-4, "1e-5": 2e-3}
# x_t from a float32 schedule accumulated in float32; magnitudes around 3. Measured 4e-6 absolute.
GOLDEN_NOISING = 1e-5
# sin and cos of phases up to 999 in float32: half a unit in the last place of the phase is 3e-5. Measured 2.9e-5 at
# d = 256, whose table has entries that differ from the golden one in the last bit.
GOLDEN_EMBEDDING = 6e-5
# 1000 steps whose tables differ by GOLDEN_SCHEDULE; the formula for eps contracts. Relative to the largest magnitude.
GOLDEN_REVERSE = 1e-4

# Between the frameworks, float32

# Network outputs, relative; summation orders of convolutions differ. Measured 1.5e-6.
NETWORK_FLOAT32 = 1e-5
# The same in float64. Measured 1e-14.
NETWORK_FLOAT64 = 1e-10
# Gradients of every parameter, relative to each gradient's largest entry, float64. Measured 1e-12.
GRADIENT_FLOAT64 = 1e-10
# The same in float32: sums over batch and pixels of both signs, so cancellation costs digits. Measured 2e-5.
GRADIENT_FLOAT32 = 2e-4
NORMALS_FLOAT32 = 1e-6
EMBEDDING_FLOAT32 = 1e-6
NOISING_FLOAT32 = 1e-6
UPDATE_FLOAT64 = 1e-6
FIFTY_LOSSES = 1e-4
FIFTY_PARAMETERS = 1e-2
REVERSE_STEP_FLOAT32 = 2e-6
SAMPLES_FLOAT32 = 1e-4
PIXELS_FLOAT32 = 1e-3
SAMPLES_FLOAT64 = 1e-9
