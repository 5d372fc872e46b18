// The points of the map, from the traits.

/** @import { Model, NodeKey } from "../lib/types" */
import { bytes, floats, halfs } from "../lib/model.js";

/**
 * @typedef {object} Data
 * @property {number} n points
 * @property {Float32Array} x between 0 and 1, to the right
 * @property {Float32Array} y between 0 and 1, downwards
 * @property {number[]} layerNumbers block number of each layer
 * @property {number[]} sizes number of features of each layer
 * @property {number[]} starts the first point of each layer
 * @property {Uint16Array} layers index of the layer by point
 * @property {Map<string, Float32Array>} columns by name
 * @property {Record<string, number>[]} chance levels by layer and column
 * @property {Uint8Array} kinds by point
 * @property {string[]} kindNames
 * @property {Record<string, string>} behind the column that defines each kind
 * @property {Uint32Array} order random drawing order, so that no layer hides others
 * @property {Float32Array} drawnX x in that order, to be read one after the other
 * @property {Float32Array} drawnY
 */

/** @param {Model} model @returns {Data | null} null when there is no map */
export function readMap(model) {
  const info = model.get("map");
  if (!info?.sizes) return null;
  /** @type {number[]} */
  const sizes = info.sizes;
  /** @type {number[]} */
  const layerNumbers = info.layers;
  const n = sizes.reduce((sum, size) => sum + size, 0);
  const points = floats(model, "map_points");
  const values = halfs(model, "map_columns");
  const kinds = bytes(model, "map_kinds");
  // The traits of one change arrive one after the other: wait for the last one.
  if (points.length !== 2 * n || values.length !== info.columns.length * n || kinds.length !== n) {
    return null;
  }
  const layers = new Uint16Array(n);
  const starts = [];
  let start = 0;
  for (const [layer, size] of sizes.entries()) {
    starts.push(start);
    layers.fill(layer, start, start + size);
    start += size;
  }
  /** @type {Map<string, Float32Array>} */
  const columns = new Map();
  for (const [i, name] of info.columns.entries()) {
    columns.set(name, values.subarray(i * n, (i + 1) * n));
  }
  const { x, y } = scaled(points, n);
  const { chance, kinds: kindNames, behind } = info;
  const order = shuffled(n);
  const drawnX = Float32Array.from(order, (i) => x[i]);
  const drawnY = Float32Array.from(order, (i) => y[i]);
  return { n, x, y, layerNumbers, sizes, starts, layers, columns, chance, kinds, kindNames, behind, order, drawnX, drawnY };
}

/** @param {Data} data @param {number} point @returns {NodeKey} */
export const keyOf = ({ layerNumbers, layers, starts }, point) => [
  layerNumbers[layers[point]],
  point - starts[layers[point]],
];

/** @param {Data} data @param {NodeKey | null | undefined} key @returns {number} -1 for none */
export function pointOf({ layerNumbers, sizes, starts }, key) {
  const layer = key ? layerNumbers.indexOf(key[0]) : -1;
  if (!key || layer < 0 || key[1] < 0 || key[1] >= sizes[layer]) return -1;
  return starts[layer] + key[1];
}

/** Both axes on one scale, the larger extent from 0 to 1.
 * @param {Float32Array} points @param {number} n
 */
function scaled(points, n) {
  const x = new Float32Array(n);
  const y = new Float32Array(n);
  let [left, right, low, high] = [Infinity, -Infinity, Infinity, -Infinity];
  for (let i = 0; i < n; i++) {
    left = Math.min(left, points[2 * i]);
    right = Math.max(right, points[2 * i]);
    low = Math.min(low, points[2 * i + 1]);
    high = Math.max(high, points[2 * i + 1]);
  }
  const extent = Math.max(right - left, high - low) || 1;
  for (let i = 0; i < n; i++) {
    x[i] = 0.5 + (points[2 * i] - (left + right) / 2) / extent;
    y[i] = 0.5 - (points[2 * i + 1] - (low + high) / 2) / extent;
  }
  return { x, y };
}

/** @param {number} n */
function shuffled(n) {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  let seed = 1;
  for (let i = n - 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0; // the same order every time
    const j = Math.floor((seed / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
