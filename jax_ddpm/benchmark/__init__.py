"""`scripts/benchmark.py`: jax_ddpm, torch_ref and diffusers against one another, each in a process of its own.

`contest` gives turns and compares, `child` is such a process, `jax_side` and `torch_side` do the work, `results` shows
it. Only `torch_side` imports torch.
"""
