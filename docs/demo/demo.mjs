// Draws with the exported step of a sampler: noise, the loop over the timesteps, and the pictures on the page.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { noiseOf } from "./noise.mjs";

const COUNT = 16;
const element = (id) => document.getElementById(id);
const said = (text) => { element("said").textContent = text; };
const seconds = (since) => ((performance.now() - since) / 1000).toFixed(1);

ort.env.wasm.numThreads = 1; // more need a server that isolates the page from others

let session, settings;

/** The noise of all pictures at a number, (COUNT, C, H, W). */
function noises(seed, number) {
  const [height, width, channels] = settings.image_shape;
  const size = height * width * channels, all = new Float32Array(COUNT * size);
  for (let image = 0; image < COUNT; image++) all.set(noiseOf(seed, image, number, settings.image_shape), image * size);
  return all;
}

/** Shows states (COUNT, C, H, W): gray, or the first three channels. */
function show(values) {
  const [height, width, channels] = settings.image_shape, [low, high] = settings.data_range;
  element("pictures").querySelectorAll("canvas").forEach((canvas, image) => {
    const context = canvas.getContext("2d"), shown = context.createImageData(width, height);
    for (let pixel = 0; pixel < height * width; pixel++) {
      for (let c = 0; c < 3; c++) {
        const channel = channels < 3 ? 0 : c;
        const value = values[(image * channels + channel) * height * width + pixel];
        shown.data[4 * pixel + c] = Math.round(Math.min(1, Math.max(0, (value - low) / (high - low))) * 255);
      }
      shown.data[4 * pixel + 3] = 255;
    }
    context.putImageData(shown, 0, 0);
  });
}

async function draw(seed) {
  const start = performance.now(), [height, width, channels] = settings.image_shape;
  const images = (values) => new ort.Tensor("float32", values, [COUNT, channels, height, width]);
  let x = noises(seed, settings.first_noise).map((value) => value * settings.sigma);
  // What a step takes from the step before, with its first value: dpmpp, and models with self-conditioning.
  const carried = {
    x_0: { input: "x_0_before", value: images(new Float32Array(x.length)) },
    lambda_t: { input: "lambda_before", value: new ort.Tensor("float32", Array(COUNT).fill(-Infinity), [COUNT, 1, 1, 1]) },
  };
  const names = Object.keys(carried).filter((name) => session.inputNames.includes(carried[name].input));
  element("progress").max = settings.timesteps.length;
  for (const [done, t] of settings.timesteps.entries()) {
    const inputs = { x: images(x), t: new ort.Tensor("int64", [BigInt(t)], []) };
    if (session.inputNames.includes("noise")) inputs.noise = images(noises(seed, t));
    for (const name of names) inputs[carried[name].input] = carried[name].value;
    const outputs = await session.run(inputs, ["x_next", ...names]);
    for (const name of names) carried[name].value = outputs[name];
    x = outputs.x_next.data;
    show(x);
    element("progress").value = done + 1;
    said(`Step ${done + 1} of ${settings.timesteps.length}, ${seconds(start)} s`);
    await new Promise(requestAnimationFrame);
  }
  const count = settings.timesteps.length;
  said(`${COUNT} pictures of seed ${seed} in ${seconds(start)} s: ${count} steps.`);
}

async function start(event) {
  event?.preventDefault();
  const buttons = [element("start"), element("next")], seed = element("seed").valueAsNumber;
  buttons.forEach((button) => { button.disabled = true; });
  element("command").textContent = `${settings.command} --seed ${seed}`;
  try {
    await draw(seed);
  } catch (error) {
    said(`Drawing failed: ${error.message}`);
  }
  buttons.forEach((button) => { button.disabled = false; });
}

try {
  const begun = performance.now();
  settings = await (await fetch("settings.json")).json();
  session = await ort.InferenceSession.create("step.onnx");
  const [height, width] = settings.image_shape;
  for (let image = 0; image < COUNT; image++) {
    element("pictures").append(Object.assign(document.createElement("canvas"), { width, height }));
  }
  said(`The network was loaded in ${seconds(begun)} s.`);
  element("form").addEventListener("submit", start);
  element("next").addEventListener("click", () => {
    element("seed").valueAsNumber = (element("seed").valueAsNumber + 1) % 2 ** 32 || 0;
    start();
  });
  await start();
} catch (error) {
  const help = location.protocol === "file:" ? " Serve the folder: python -m http.server" : "";
  said(`The network could not be loaded: ${error.message}.${help}`);
}
