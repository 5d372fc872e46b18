// Pruning, as vitlens/circuits/prune.py specifies it (`walk`, `filter_shares`, `keeps_edge`). It
// is written again here so that a slider acts at once; tests compare both. `removed` nodes of
// `AttributionGraph.prune` have no counterpart: the diagram has no control that removes a node.

/**
 * @typedef {object} Graph
 * @property {number[]} counts candidates by layer
 * @property {number[]} offsets the first candidate's number by layer, and how many there are
 * @property {ArrayLike<number>} features by candidate, ascending in a layer; -1 is an error node
 * @property {ArrayLike<number>} importances by candidate
 * @property {ArrayLike<number>} weights for each layer but the last [n_l, n_{l+1}], row-major
 * @property {number[]} blocks offset of each layer's weights
 * @property {number[]} positive by layer, the denominator of shares
 */

/**
 * @typedef {object} Rules
 * @property {number} count nodes per layer
 * @property {number} [nodeShare]
 * @property {number} [edgeShare]
 * @property {Iterable<number>} [pinned] candidates by number
 */

/**
 * The kept candidates by layer, ascending, and the edges between them. A candidate is identified by
 * its index; the target's index is the number of candidates.
 * @typedef {object} Kept
 * @property {number[][]} nodes
 * @property {number[]} source
 * @property {number[]} target
 * @property {number[]} weight
 * @property {number[]} share
 */

const ERROR = -1;

/** @param {number} value @param {number} positive */
export const shareOf = (value, positive) => (positive > 0 ? value / positive : 0);

/**
 * By layer, the kept candidates' positions in the layer, in ranked order.
 * @param {Graph} graph @param {number} count
 * @returns {number[][]}
 */
export function walk(graph, count) {
  const { counts, offsets, features, importances, weights, blocks } = graph;
  /** @type {number[][]} */
  const kept = [];
  for (let layer = counts.length - 1; layer >= 0; layer--) {
    const scores = new Float64Array(counts[layer]);
    const after = layer + 1;
    const into = (kept[after] ?? [])
      .filter((position) => features[offsets[after] + position] !== ERROR)
      .sort((a, b) => a - b);
    for (let i = 0; i < scores.length; i++) {
      if (!into.length) {
        scores[i] = importances[offsets[layer] + i];
        continue;
      }
      const row = blocks[layer] + i * counts[after];
      for (const position of into) scores[i] += weights[row + position];
    }
    const ranked = Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
    kept[layer] = ranked.slice(0, Math.max(1, count));
  }
  return kept;
}

/**
 * @param {Graph} graph @param {Rules} rules
 * @returns {Kept}
 */
export function prune(graph, { count, nodeShare = 0, edgeShare = 0, pinned = [] }) {
  const { counts, offsets, features, importances, positive } = graph;
  const fixed = new Set(pinned);
  const nodes = walk(graph, count).map((positions, layer) => {
    const strong = positions.filter(
      (position, rank) =>
        rank === 0 ||
        nodeShare <= 0 ||
        shareOf(importances[offsets[layer] + position], positive[layer]) >= nodeShare,
    );
    return strong.map((position) => offsets[layer] + position);
  });
  for (const id of fixed) {
    const layer = layerOf(graph, id);
    if (layer < nodes.length && !nodes[layer].includes(id)) nodes[layer].push(id);
  }
  for (const layer of nodes) layer.sort((a, b) => a - b);

  /** @type {Kept} */
  const kept = { nodes, source: [], target: [], weight: [], share: [] };
  nodes.forEach((sources, layer) => {
    const last = layer === nodes.length - 1;
    const targets = last
      ? [offsets[layer + 1]]
      : nodes[layer + 1].filter((id) => features[id] !== ERROR);
    for (const source of sources) {
      const row = graph.blocks[layer] + (source - offsets[layer]) * counts[layer + 1];
      for (const target of targets) {
        const weight = last ? importances[source] : graph.weights[row + target - offsets[layer + 1]];
        const share = shareOf(weight, positive[layer]);
        const stays = Math.abs(share) >= edgeShare || fixed.has(source) || fixed.has(target);
        if (weight === 0 || !stays) continue;
        kept.source.push(source);
        kept.target.push(target);
        kept.weight.push(weight);
        kept.share.push(share);
      }
    }
  });
  return kept;
}

/** The layer of a candidate; the target's is one after the last.
 * @param {Pick<Graph, "offsets">} graph @param {number} id
 */
export function layerOf({ offsets }, id) {
  let layer = 0;
  while (layer < offsets.length - 1 && id >= offsets[layer + 1]) layer++;
  return layer;
}
