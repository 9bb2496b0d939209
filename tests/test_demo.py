"""The page that draws in a browser: its noise, and in Chromium the pictures of `sample`."""

import functools
import http.server
import importlib.util
import json
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import jax_ddpm
from jax_ddpm.data import to_uint8
from jax_ddpm.spec.errors import UserError
from tests import browser
from tests.test_export import NETWORK, SELF_CONDITIONED, assert_same_pictures, model
from tests.test_page import needs_browser
from torch_ref.sampling import samplers

DEMO = Path(__file__).parents[1] / "docs" / "demo"
SAID = "document.getElementById('said').textContent"
LEVELS = """[...document.querySelectorAll("canvas")].map((canvas) =>
  [...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data].filter((_, i) => i % 4 === 0))"""


def builder():
    spec = importlib.util.spec_from_file_location("demo_build", DEMO / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_models_with_labels_are_refused(tmp_path):
    path = model(NETWORK.with_classes(3)).save(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="the page has no labels"):
        builder().build(path, tmp_path / "page")
    assert not (tmp_path / "page").exists()


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_the_noise_of_the_page_is_that_of_jax():
    shape, seed = (5, 3, 2), 2**32 - 1
    script = f"""import {{ noiseOf }} from "{(DEMO / "noise.mjs").as_uri()}";
      console.log(JSON.stringify([0, 7].map((image) => [...noiseOf({seed}, image, 999, {list(shape)})])));"""
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    noise = np.array(json.loads(done.stdout)).reshape(2, 2, 5, 3)
    wanted = samplers.noise_at(samplers.image_keys(seed, np.array([0, 7])), 999, shape, torch.float32)
    np.testing.assert_allclose(noise, wanted, rtol=0, atol=1e-6)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path):
    handler = functools.partial(Quiet, directory=tmp_path / "page")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@needs_browser
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="no npm")
@pytest.mark.parametrize("network", [NETWORK, SELF_CONDITIONED], ids=["plain", "self-conditioned"])
def test_the_page_draws_the_pictures_of_sample(network, served, tmp_path):
    pytest.importorskip("onnxscript", reason="pip install 'jax-ddpm[onnx]'")
    small = model(network)
    builder().build(small.save(tmp_path / "model.safetensors"), tmp_path / "page", num_steps=5)
    window = browser.Browser(tmp_path / "profile")
    try:
        window.open(served, width=360)
        for seed in (0, 1):
            end = time.monotonic() + browser.SECONDS
            while f"16 pictures of seed {seed} in" not in window.run(SAID):
                assert time.monotonic() < end and "could not" not in window.run(SAID), window.run(SAID)
                time.sleep(0.1)
            told = [each for each in window.complaints() if not each.startswith((served, "blob:"))]
            assert seed or told == []  # reading the pictures below is complained about
            images = np.array(window.run(LEVELS), np.uint8).reshape(16, 4, 4, 1)
            assert_same_pictures(images, to_uint8(jax_ddpm.sample(small, 16, seed, sampler="ddim", num_steps=5)))
            assert f"--num-steps 5 --seed {seed}" in window.run("document.getElementById('command').textContent")
            window.run("document.getElementById('next').click()")
        assert window.run("document.documentElement.scrollWidth <= innerWidth")
    finally:
        window.close()
