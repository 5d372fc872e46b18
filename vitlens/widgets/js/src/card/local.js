// A card of the values in the diagram, where no kernel can compute one.

/** @import { Model, NodeKey } from "../lib/types" */
import { floats, halfs, ints } from "../lib/model.js";

const BINS = 20;
const LINKS = 6;

/**
 * @param {Model} model with the traits of the diagram, or without
 * @param {NodeKey} node
 * @returns {{ card: Record<string, any>, values: Float32Array } | null} null for a node
 *   that is not in the diagram
 */
export function localCard(model, [layer, feature]) {
  const graph = model.get("graph_info");
  const column = graph?.layers?.indexOf(layer) ?? -1;
  if (column < 0) return null;
  const features = ints(model, "node_features");
  const starts = [0];
  for (const count of graph.counts) starts.push(starts[starts.length - 1] + count);
  const index = features.indexOf(feature, starts[column]);
  if (index < 0 || index >= starts[column + 1]) return null;

  const heats = halfs(model, "node_heat");
  const n = heats.length / features.length;
  const row = (/** @type {Float32Array} */ all) => all.subarray(index * n, (index + 1) * n);
  const activation = row(halfs(model, "node_activations"));
  const importance = floats(model, "node_importances")[index];
  const values = new Float32Array(2 * n);
  values.set(activation);
  values.set(row(heats), n);
  return {
    card: {
      node: [layer, feature],
      kind: feature === -1 ? "error" : "feature",
      is_first: column === 0,
      importance,
      share: part(importance, graph.positive[column]),
      target: graph.target?.name,
      n_tokens: n,
      active: activation.filter((x) => x > 0).length,
      histogram: binned(activation.filter((x) => x > 0)),
      ...links(model, graph, features, starts, column, index),
      needs_kernel: true,
    },
    values,
  };
}

/**
 * The strongest edges among the nodes of the diagram.
 * @param {Model} model
 * @param {Record<string, any>} graph
 * @param {Int32Array} features
 * @param {number[]} starts
 * @param {number} column
 * @param {number} index
 */
function links(model, graph, features, starts, column, index) {
  const weights = floats(model, "edge_weights");
  const { counts, layers, positive } = graph;
  const position = index - starts[column];
  let block = 0; // offset of the edges into this column
  for (let i = 0; i < column - 1; i++) block += counts[i] * counts[i + 1];
  /** @type {number[][]} */
  const into = [];
  if (column > 0) {
    for (let i = 0; i < counts[column - 1]; i++) {
      const weight = weights[block + i * counts[column] + position];
      const source = features[starts[column - 1] + i];
      into.push([layers[column - 1], source, weight, part(weight, positive[column - 1])]);
    }
    block += counts[column - 1] * counts[column];
  }
  /** @type {number[][]} */
  const out = [];
  for (let i = 0; i < (counts[column + 1] ?? 0); i++) {
    const weight = weights[block + position * counts[column + 1] + i];
    out.push([layers[column + 1], features[starts[column + 1] + i], weight, part(weight, positive[column])]);
  }
  if (column === counts.length - 1) {
    const weight = floats(model, "node_importances")[index];
    out.push([layers[column] + 1, -2, weight, part(weight, positive[column])]);
  }
  return { edges_in: best(into), edges_out: best(out) };
}

/** @param {number[][]} edges */
const best = (edges) =>
  edges
    .filter(([, , weight]) => weight)
    .sort((a, b) => Math.abs(b[2]) - Math.abs(a[2]))
    .slice(0, LINKS);

/** @param {Float32Array} active */
function binned(active) {
  if (!active.length) return { edges: [], counts: [] };
  const top = active.reduce((most, x) => Math.max(most, x), 0);
  const counts = new Array(BINS).fill(0);
  for (const x of active) counts[Math.min(BINS - 1, Math.floor((x / top) * BINS))] += 1;
  return { edges: Array.from({ length: BINS + 1 }, (_, i) => (top * i) / BINS), counts };
}

/** @param {number} value @param {number} whole */
const part = (value, whole) => (whole > 0 ? value / whole : 0);
