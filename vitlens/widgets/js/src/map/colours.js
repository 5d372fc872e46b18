// The colours of points and their legend.

/** @import { Data } from "./data.js" */
import { offsetOf, table } from "../lib/scale.js";

/**
 * @typedef {[number, number, number]} Rgb
 *
 * @typedef {object} Colours
 * @property {Uint32Array} of each point, as ImageData holds it
 * @property {(value: number) => Rgb} [ramp] of a value between 0 and 1
 * @property {string[]} [ends] labels of the ramp's ends
 * @property {[string, Rgb][]} [named] colours of kinds
 * @property {boolean} missing whether some points have no value
 */

/** Okabe and Ito's colours; the pale ones are darker on white.
 * @type {Record<string, [string, string]>}
 */
const KINDS = {
  position: ["#0072b2", "#4ba3dd"],
  class: ["#d55e00", "#e8853d"],
  orientation: ["#009e73", "#21c596"],
  curve: ["#b85d92", "#dd92bb"],
  hue: ["#c08300", "#f0b429"],
  texture: ["#4a4aa8", "#a5a8f5"],
};
const OTHER = ["#6b4e2e", "#cfae84"];
const GREYS = ["#b4b9bf", "#5f656d"]; // no value, no kind

/**
 * @param {Data} data @param {string} by "layer", "kind" or a column @param {boolean} dark
 * @returns {Colours}
 */
export function coloursOf(data, by, dark) {
  const of = new Uint32Array(data.n);
  const grey = pack(rgb(GREYS[dark ? 1 : 0]));
  if (by === "kind") {
    const named = data.kindNames.map((name) => /** @type {[string, Rgb]} */ ([name, kindColour(name, dark)]));
    const packed = named.map(([, colour]) => pack(colour));
    for (let i = 0; i < data.n; i++) of[i] = packed[data.kinds[i]];
    return { of, named, missing: false };
  }
  const ramp = (/** @type {number} */ v) => viridis(v, dark);
  if (by === "layer") {
    const last = Math.max(1, data.sizes.length - 1);
    const packed = data.sizes.map((_, layer) => pack(ramp(layer / last)));
    for (let i = 0; i < data.n; i++) of[i] = packed[data.layers[i]];
    return { of, ramp, missing: false };
  }
  const values = data.columns.get(by) ?? new Float32Array(data.n).fill(NaN);
  const log = by === "frequency";
  const [low, high] = range(values, log);
  const at = (/** @type {number} */ v) =>
    log ? Math.log(v / low) / Math.log(high / low || 1) : (v - low) / (high - low || 1);
  let missing = false;
  for (let i = 0; i < data.n; i++) {
    const known = values[i] > 0 || (!log && !Number.isNaN(values[i]));
    of[i] = known ? pack(ramp(at(values[i]))) : grey;
    missing ||= !known;
  }
  return { of, ramp, ends: [short(low), short(high)], missing };
}

/** @param {boolean} dark @returns {Rgb} */
export const greyOf = (dark) => rgb(GREYS[dark ? 1 : 0]);

/** A packed colour mixed with the background.
 * @param {number} colour @param {Rgb} ground @param {number} share of the colour
 */
export function faded(colour, ground, share) {
  const mixed = ground.map((g, i) => Math.round(g + share * (((colour >> (8 * i)) & 255) - g)));
  return pack(/** @type {Rgb} */ (mixed));
}

/** @param {Rgb} colour */
export const pack = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;

/** @param {Rgb} colour */
export const cssOf = ([r, g, b]) => `rgb(${r} ${g} ${b})`;

/** @param {string} name @param {boolean} dark */
function kindColour(name, dark) {
  if (name === "none") return greyOf(dark);
  return rgb((KINDS[name] ?? OTHER)[dark ? 1 : 0]);
}

/** Viridis without the end that is close to the background.
 * @param {number} value @param {boolean} dark @returns {Rgb}
 */
function viridis(value, dark) {
  const [low, high] = dark ? [0.18, 1] : [0, 0.9];
  const i = offsetOf(low + (high - low) * Math.max(0, Math.min(1, value)));
  const colours = table("viridis");
  return [colours[i], colours[i + 1], colours[i + 2]];
}

/** @param {Float32Array} values @param {boolean} log */
function range(values, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (!(log ? value > 0 : value > -Infinity)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return high < low ? [0, 1] : [log ? low : Math.min(0, low), high];
}

/** @param {number} x */
const short = (x) => String(Number(x.toPrecision(2))).replace("-", "−");

/** @param {string} hex @returns {Rgb} */
const rgb = (hex) => /** @type {Rgb} */ ([1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
