"""Train a DDPM in JAX: python scripts/train_jax.py --dataset fashion_mnist"""

from jax_ddpm.command_line import parse_run, run_command
from jax_ddpm.compilation import tidy_after_compiling


def main():
    flags = parse_run()
    tidy_after_compiling()
    if flags.replay_step is not None:
        from jax_ddpm.training.replay import replay

        replay(flags.config, flags.out, flags.replay_step)
    else:
        from jax_ddpm.training.loop import train  # after the flags, so that --help and mistakes answer at once

        train(flags.config, flags.out, flags.resume)


if __name__ == "__main__":
    run_command(main)
