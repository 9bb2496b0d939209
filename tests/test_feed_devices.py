"""Images of a data set that is not kept on the devices: each of several devices gets only those of its part of a batch.

Also with one process. In a child process, which has four devices.
"""

import json
import os
import subprocess
import sys

CHILD = """
import json
import jax, numpy as np
from jax_ddpm import ops
from jax_ddpm.training import feed
from jax_ddpm.training.prepare import make_mesh
from tests.small import small

images = np.random.default_rng(0).integers(0, 256, (40, 8, 16, 1), np.uint8)
labels, config, mesh = np.arange(40, dtype=np.int32), small(batch_size=8, conditional=True), make_mesh(8)
found = {"devices": mesh.size}
for platform in ("cpu", "gpu"):
    with ops.compile_for(platform):
        feed.MAX_RESIDENT_BYTES = 0
        streamed = feed.Feed(images, config, mesh, labels)
        planned = feed.program_inputs(config, mesh, len(images), images.shape[1:])

        def step(state, batch, labels):
            same = (batch == state["images"][state["step"]]).all() & (labels == state["labels"][state["step"]]).all()
            return {**state, "step": state["step"] + 1}, {"same": same}

        indices = streamed.indices(0, streamed.steps_per_dispatch)
        state = {"step": np.int32(0), "images": images[indices], "labels": labels[indices]}
        dispatch = feed.make_dispatch(step, streamed.steps_per_dispatch, True, images.shape[1:], streamed.by_step)
        sent = streamed.batches(0, streamed.steps_per_dispatch)
        metrics = dispatch(state, *sent)[1]
        found[platform] = {
            "steps": streamed.steps_per_dispatch,
            "same": np.asarray(metrics["same"]).tolist(),
            "bytes of the batches": sent[0].nbytes,
            "bytes of a device": [shard.data.nbytes for shard in sent[0].addressable_shards],
            "planned": [(x.shape, str(x.dtype)) == (y.shape, str(y.dtype)) and x.sharding == y.sharding
                        for x, y in zip(planned, sent, strict=True)],
        }
print(json.dumps(found))
"""


def test_each_device_gets_its_part_of_a_batch():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.pop("devices") == 4 and [each["steps"] for each in found.values()] == [1, 8]
    for each in found.values():
        assert each["same"] == [True] * each["steps"] and all(each["planned"])
        assert each["bytes of the batches"] == each["steps"] * 8 * 8 * 16
        assert each["bytes of a device"] == [each["bytes of the batches"] // 4] * 4
