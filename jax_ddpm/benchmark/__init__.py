"""`jax-ddpm benchmark`: compares the speed of jax_ddpm, torch_ref and diffusers, each in a process of its own.

`contest` starts the processes, compares their outputs and lets them take turns. `child` runs in each of them.
`jax_side` and `torch_side` hold the code that is timed; only `torch_side` imports torch. `results` and `scaling` make
tables and plots.
"""
