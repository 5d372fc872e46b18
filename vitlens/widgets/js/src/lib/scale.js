// Colours of values, as in vitlens/plots: blue is positive, orange negative, distinguishable with
// any colour vision; and cividis and viridis, for values without a sign.

/** Okabe and Ito's blue and vermilion. */
export const POSITIVE = "#0072b2";
export const NEGATIVE = "#d55e00";

const RISE = 0.6; // opacity grows with this power of the heat, so that weak heat is visible
const STEPS = 256; // a table has 2 * STEPS + 1 entries, from -1 to 1

const CIVIDIS =
  "00224e 00306f 2a3f6d 434e6c 575d6d 6a6c71 7d7c78 918c78 a69d75 bcae6c d2c060 e8d34d fee838";

const VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725";

/** @typedef {"heat" | "cividis" | "viridis"} ScaleName */

/** @type {Map<ScaleName, Uint8ClampedArray>} */
const tables = new Map();

/**
 * Red, green, blue and opacity (0 to 255) for heat from -1 to 1, four numbers per entry.
 * "heat" is transparent where the heat is 0; the others show magnitudes.
 * @param {ScaleName} [name]
 */
export function table(name = "heat") {
  let made = tables.get(name);
  if (!made) {
    made = new Uint8ClampedArray(4 * (2 * STEPS + 1));
    for (let i = 0; i <= 2 * STEPS; i++) made.set(entry(name, i / STEPS - 1), 4 * i);
    tables.set(name, made);
  }
  return made;
}

/** @param {ScaleName} name @param {number} heat @returns {number[]} */
function entry(name, heat) {
  const size = Math.abs(heat);
  if (name === "heat") return [...rgb(heat < 0 ? NEGATIVE : POSITIVE), 255 * size ** RISE];
  const stops = (name === "viridis" ? VIRIDIS : CIVIDIS).split(" ");
  const at = size * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [rgb(`#${stops[low]}`), rgb(`#${stops[low + 1]}`)];
  return [...a.map((x, i) => x + (b[i] - x) * (at - low)), 255];
}

/** Offset into a table for heat, clipped to -1 and 1.
 * @param {number} heat
 */
export const offsetOf = (heat) => 4 * Math.round(STEPS * (1 + Math.max(-1, Math.min(1, heat || 0))));

/**
 * A CSS colour for heat from -1 to 1.
 * @param {number} heat @param {{ scale?: ScaleName, opacity?: number }} [options]
 */
export function css(heat, { scale = "heat", opacity = 1 } = {}) {
  const colours = table(scale);
  const i = offsetOf(heat);
  const alpha = (opacity * colours[i + 3]) / 255;
  return `rgb(${colours[i]} ${colours[i + 1]} ${colours[i + 2]} / ${alpha.toFixed(3)})`;
}

/** The largest magnitude among numbers, 0 for none; infinite values and NaN are skipped.
 * @param {ArrayLike<number>} values
 */
export function strongest(values) {
  let most = 0;
  for (let i = 0; i < values.length; i++) {
    const size = Math.abs(values[i]);
    if (size > most && size < Infinity) most = size;
  }
  return most;
}

/** @param {string} hex */
const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
