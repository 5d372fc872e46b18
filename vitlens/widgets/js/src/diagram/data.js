// The graph of candidates, read from the traits.

/** @import { Model, NodeKey } from "../lib/types" */
/** @import { Graph } from "./prune.js" */
import { floats, halfs, ints } from "../lib/model.js";
import { strongest } from "../lib/scale.js";
import { shareOf } from "./prune.js";

export const ERROR = -1;
export const TARGET = -2;

/**
 * @typedef {object} Extra
 * @property {number} total candidates; also the target's number
 * @property {number} maxCount nodes per layer
 * @property {number[]} layerNumbers the block number of each column
 * @property {Int32Array} layers block number by candidate
 * @property {Int32Array} columns column by candidate
 * @property {Float64Array} shares by candidate
 * @property {Float32Array} heat [candidate, token]
 * @property {Float32Array} activations [candidate, token], or empty
 * @property {number} tokens
 * @property {[number, number]} grid
 * @property {string[]} prefixNames
 * @property {{ name: string, index: number | null, value: number }} goal the target
 * @property {[string, number]} prediction
 * @property {Map<string, number>} ids by "layer/feature"
 * @property {string[]} kinds of the candidates, with score and chance level; from an atlas
 * @typedef {Graph & Extra} Data
 */

/**
 * @param {Model} model
 * @returns {Data | null} null when nothing is shown yet
 */
export function readData(model) {
  const info = model.get("graph_info");
  if (!info?.counts) return null;
  const { counts, positive } = info;
  const offsets = [0];
  const blocks = [];
  let block = 0;
  for (let column = 0; column < counts.length; column++) {
    offsets.push(offsets[column] + counts[column]);
    blocks.push(block);
    block += counts[column] * (counts[column + 1] ?? 0);
  }
  const total = offsets[counts.length];
  const features = ints(model, "node_features");
  const importances = floats(model, "node_importances");
  const weights = floats(model, "edge_weights");
  // The traits of one change arrive one after the other: wait for the last one.
  if (features.length !== total || importances.length !== total || weights.length !== block) {
    return null;
  }
  /** @type {number[]} */
  const layerNumbers = info.layers;
  const layers = new Int32Array(total);
  const columns = new Int32Array(total);
  const shares = new Float64Array(total);
  const ids = new Map();
  for (const [column, layer] of layerNumbers.entries()) {
    for (let id = offsets[column]; id < offsets[column + 1]; id++) {
      columns[id] = column;
      layers[id] = layer;
      shares[id] = shareOf(importances[id], positive[column]);
      ids.set(`${layer}/${features[id]}`, id);
    }
  }
  ids.set(`${targetLayer({ layerNumbers })}/${TARGET}`, total);
  const heat = halfs(model, "node_heat");
  return {
    counts,
    offsets,
    features,
    importances,
    weights,
    blocks,
    positive,
    total,
    maxCount: info.max_count,
    layerNumbers,
    layers,
    columns,
    shares,
    heat,
    activations: halfs(model, "node_activations"),
    tokens: heat.length / total,
    grid: model.get("grid"),
    prefixNames: model.get("prefix_names") ?? [],
    goal: info.target,
    prediction: info.prediction,
    ids,
    kinds: info.kinds ?? [],
  };
}

/** @param {Data} data @param {NodeKey | null | undefined} key */
export const idOf = (data, key) => (key ? data.ids.get(`${key[0]}/${key[1]}`) : undefined);

/** @param {Data} data @param {number} id @returns {NodeKey} */
export const keyOf = (data, id) =>
  id === data.total ? [targetLayer(data), TARGET] : [data.layers[id], data.features[id]];

/** The layer of the target: one after the last.
 * @param {Pick<Data, "layerNumbers">} data
 */
export const targetLayer = ({ layerNumbers }) => (layerNumbers.at(-1) ?? -1) + 1;

/** Importances of a candidate per token, and their largest magnitude.
 * @param {Data} data @param {number} id
 */
export function relativeHeat(data, id) {
  const values = data.heat.subarray(id * data.tokens, (id + 1) * data.tokens);
  const limit = strongest(values);
  return { values, limit };
}

/** A share for people: whole percent, one decimal below ten.
 * @param {number} share
 */
export function shareText(share) {
  const size = Math.abs(100 * share);
  if (size && size < 0.05) return share < 0 ? ">−0.1%" : "<0.1%";
  const text = size >= 9.95 ? size.toFixed(0) : size.toFixed(1);
  return `${share < 0 ? "−" : ""}${text}%`;
}

/** The name of a feature without a label.
 * @param {number} feature
 */
export const featureName = (feature) => (feature === ERROR ? "error" : String(feature));
