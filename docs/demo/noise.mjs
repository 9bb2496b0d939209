// The noise of jax.random: threefry 2x32, and standard normal numbers from its bits.

const ROTATIONS = [[13, 15, 26, 6], [17, 29, 16, 24]];
const LOWEST = 2 ** -24 - 1; // the float32 above -1
const SAMPLING = 4; // the purpose of this noise: rng.SAMPLING

/** Two words from a key of two words and a counter of two words, all uint32: Salmon et al. 2011, 20 rounds. */
function threefry([first, second], a, b) {
  const words = [first, second, (first ^ second ^ 0x1bd11bda) >>> 0];
  a = (a + words[0]) >>> 0;
  b = (b + words[1]) >>> 0;
  for (let group = 0; group < 5; group++) {
    for (const rotation of ROTATIONS[group % 2]) {
      a = (a + b) >>> 0;
      b = (((b << rotation) | (b >>> (32 - rotation))) ^ a) >>> 0;
    }
    a = (a + words[(group + 1) % 3]) >>> 0;
    b = (b + words[(group + 2) % 3] + group + 1) >>> 0;
  }
  return [a, b];
}

// Polynomials of Giles 2010 for erf^-1(x) / x, highest power first: for w = -log(1 - x^2) below 5, and above.
const CENTRE = [2.81022636e-8, 3.43273939e-7, -3.5233877e-6, -4.39150654e-6, 0.00021858087, -0.00125372503,
  -0.00417768164, 0.246640727, 1.50140941];
const TAIL = [-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773, -0.0076224613,
  0.00943887047, 1.00167406, 2.83297682];

function inverseErf(x) {
  const w = -Math.log1p(-Math.fround(x * x)); // rounded as XLA does
  const [z, polynomial] = w < 5 ? [w - 2.5, CENTRE] : [Math.sqrt(w) - 3, TAIL];
  return x * polynomial.reduce((sum, coefficient) => sum * z + coefficient, 0);
}

/** Standard normal noise of one image at a number (a timestep, or T for the first state): Float32Array (C, H, W). */
export function noiseOf(seed, image, number, [height, width, channels]) {
  const key = [SAMPLING, image, number].reduce((key, part) => threefry(key, 0, part), [0, seed]);
  const noise = new Float32Array(channels * height * width);
  for (let i = 0; i < noise.length; i++) { // JAX draws (H, W, C)
    const [a, b] = threefry(key, 0, i);
    const uniform = ((a ^ b) >>> 9) / 2 ** 23; // 23 bits, in [0, 1)
    const pixel = Math.floor(i / channels), channel = i % channels;
    const between = Math.max(LOWEST, Math.fround(2 * uniform + LOWEST)); // in (-1, 1)
    noise[channel * height * width + pixel] = Math.SQRT2 * inverseErf(between);
  }
  return noise;
}
