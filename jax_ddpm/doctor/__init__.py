"""The port doctor: any PyTorch module beside any Flax module, and the cause of the first difference named."""

from jax_ddpm.doctor.comparison import assert_parity, check_module, compare, evaluation_mode
from jax_ddpm.doctor.diffusion import compare_betas, compare_step
from jax_ddpm.doctor.optimiser import compare_ema, compare_optimizer
from jax_ddpm.doctor.result import Result
from jax_ddpm.doctor.transferred_file import load_transferred, save_transferred

__all__ = [
    "Result",
    "assert_parity",
    "check_module",
    "compare",
    "compare_betas",
    "compare_ema",
    "compare_optimizer",
    "compare_step",
    "evaluation_mode",
    "load_transferred",
    "save_transferred",
]
