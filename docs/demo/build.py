"""Build the page that draws in a browser: python docs/demo/build.py RUN FOLDER. Needs npm and jax-ddpm[onnx]."""

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import torch_ref
from jax_ddpm.spec.diffusion_config import SamplerConfig, check_sampler, default_sampler
from jax_ddpm.spec.errors import UserError, require
from torch_ref.sampling.export import file_settings

HERE = Path(__file__).parent
PAGE = ("index.html", "demo.mjs", "noise.mjs")
RUNTIME = "onnxruntime-web@1.30.0"
NEEDED = ("dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm")  # for CPUs, without WebGPU


def build(path: Path, folder: Path, num_steps: int = 50) -> None:
    """Write the page for a model without labels, with images of one or three channels.

    Raises UserError for other models, and if npm cannot download the runtime.
    """
    model = torch_ref.load_model(path)
    info = model.info
    require(not info.network.takes_labels, "model", path, "the page has no labels; expected a model without them")
    channels = info.image_shape[2]
    require(channels in (1, 3), "channels of the images", channels, "expected 1 or 3")
    name = "heun" if info.diffusion.is_continuous else "ddim"
    sampler = SamplerConfig(name, num_steps)
    check_sampler(sampler, info.diffusion)
    folder.mkdir(parents=True, exist_ok=True)
    copy_runtime(folder)
    for file in PAGE:
        shutil.copy(HERE / file, folder)
    torch_ref.export_step(model, folder / "step.onnx", sampler=sampler)
    command = f"jax-ddpm sample --model {path} --num-images 16"
    if sampler != default_sampler(info.diffusion):
        command += f" --sampler {name} --num-steps {num_steps}"
    settings = {**file_settings(info, info.diffusion, sampler), "command": command}
    (folder / "settings.json").write_text(json.dumps(settings))


def copy_runtime(folder: Path) -> None:
    """Copy what the page needs of onnxruntime-web, which npm downloads (33 MB)."""
    if all((folder / Path(file).name).exists() for file in NEEDED):
        return
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("The page needs onnxruntime-web, which npm downloads: install Node.js, which has npm.")
    with tempfile.TemporaryDirectory() as temporary:
        done = subprocess.run([npm, "pack", RUNTIME, "--silent"], cwd=temporary, capture_output=True, text=True)
        archives = list(Path(temporary).glob("*.tgz"))
        if done.returncode or not archives:
            raise UserError(f"npm could not download {RUNTIME}: {done.stderr.strip()[-300:] or 'no file'}")
        with tarfile.open(archives[0]) as archive:
            for file in NEEDED:
                (folder / Path(file).name).write_bytes(archive.extractfile(f"package/{file}").read())


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the page that draws in a browser.")
    parser.add_argument("model", type=Path, help="run, or what else jax-ddpm sample --model takes")
    parser.add_argument("folder", type=Path, help="folder to write")
    parser.add_argument("--num-steps", type=int, default=50, help="steps of the sampler (default: 50)")
    arguments = parser.parse_args()
    try:
        build(arguments.model, arguments.folder, arguments.num_steps)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    size = sum(file.stat().st_size for file in arguments.folder.iterdir())
    print(f"Wrote {arguments.folder}, {size / 1e6:.1f} MB. To see it: python -m http.server -d {arguments.folder}")


if __name__ == "__main__":
    main()
