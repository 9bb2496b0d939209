"""From the first difference between two networks to its cause.

A hypothesis is a change of their operation. It is proven when it gives our numbers, up to rounding, on the same input.
"""

from jax_ddpm.doctor.causes.families import describe, explain
from jax_ddpm.doctor.causes.settings import hidden_causes

__all__ = ["describe", "explain", "hidden_causes"]
