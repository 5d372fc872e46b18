// Rows: the order of nodes within layers, by the weighted barycentre of their neighbours, so that
// edges cross little (Sugiyama, Tagawa and Toda, 1981). One order of all candidates serves every
// position of the sliders, so that rows stay where they are while a slider moves.

/** @import { Graph, Kept } from "./prune.js" */

const SWEEPS = 8;

/**
 * Ranks of all candidates: a smaller number is further up.
 * @param {Graph} graph
 * @returns {Float64Array}
 */
export function globalOrder(graph) {
  const { counts, offsets, weights, blocks } = graph;
  const rank = new Float64Array(offsets[counts.length]);
  for (let layer = 0; layer < counts.length; layer++) {
    // Strong nodes start in the middle: weak ones appear and disappear at the ends.
    const ids = range(offsets[layer], offsets[layer + 1]);
    ids.sort((a, b) => graph.importances[b] - graph.importances[a]);
    ids.forEach((id, i) => (rank[id] = (i % 2 ? 1 : -1) * Math.ceil(i / 2)));
    settle(rank, ids);
  }
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const backwards = sweep % 2 === 0;
    for (let step = 1; step < counts.length; step++) {
      const layer = backwards ? counts.length - 1 - step : step;
      const [left, right] = backwards ? [layer, layer + 1] : [layer - 1, layer];
      const ids = range(offsets[layer], offsets[layer + 1]);
      const centre = new Map();
      for (const id of ids) {
        const position = id - offsets[layer];
        const others = counts[backwards ? right : left];
        let sum = 0;
        let total = 0;
        for (let i = 0; i < others; i++) {
          const at = backwards ? position * counts[right] + i : i * counts[right] + position;
          const weight = Math.abs(weights[blocks[left] + at]);
          total += weight;
          sum += weight * rank[offsets[backwards ? right : left] + i];
        }
        centre.set(id, total > 0 ? sum / total : rank[id]);
      }
      sortBy(rank, ids, centre);
    }
  }
  return rank;
}

/**
 * Orders the kept nodes again, within the positions that they now have.
 * @param {Float64Array} rank changed in place
 * @param {Kept} kept
 */
export function tidy(rank, kept) {
  const own = new Map();
  for (const ids of kept.nodes) {
    const sorted = [...ids].sort((a, b) => rank[a] - rank[b]);
    sorted.forEach((id, i) => own.set(id, i - (sorted.length - 1) / 2));
  }
  /** @type {Map<number, [number, number][]>} */
  const before = new Map();
  /** @type {Map<number, [number, number][]>} */
  const after = new Map();
  kept.source.forEach((source, i) => {
    const target = kept.target[i];
    const weight = Math.abs(kept.weight[i]);
    push(after, source, [target, weight]);
    push(before, target, [source, weight]);
  });
  let best = new Map(own);
  let least = crossings(own, kept);
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const backwards = sweep % 2 === 0;
    const neighbours = backwards ? after : before;
    const layers = backwards ? [...kept.nodes].reverse() : kept.nodes;
    for (const ids of layers.slice(backwards ? 0 : 1)) {
      const centre = new Map();
      for (const id of ids) {
        let sum = 0;
        let total = 0;
        for (const [other, weight] of neighbours.get(id) ?? []) {
          if (!own.has(other)) continue;
          sum += weight * own.get(other);
          total += weight;
        }
        centre.set(id, total > 0 ? sum / total : own.get(id));
      }
      const sorted = [...ids].sort((a, b) => centre.get(a) - centre.get(b) || own.get(a) - own.get(b));
      sorted.forEach((id, i) => own.set(id, i - (sorted.length - 1) / 2));
    }
    const crossed = crossings(own, kept);
    if (crossed < least) {
      least = crossed;
      best = new Map(own);
    }
  }
  for (const ids of kept.nodes) {
    const positions = ids.map((id) => rank[id]).sort((a, b) => a - b);
    const sorted = [...ids].sort((a, b) => best.get(a) - best.get(b));
    sorted.forEach((id, i) => (rank[id] = positions[i]));
  }
}

/**
 * The weight of crossings: for each, the product of both edges' weights. Edges are sorted by their
 * start, and a tree of partial sums over their ends (Fenwick, 1994) holds the earlier ones.
 * @param {Map<number, number>} position by node, counted from the middle of its layer
 * @param {Kept} kept
 */
function crossings(position, kept) {
  const layer = new Map(kept.nodes.flatMap((ids, l) => ids.map((id) => [id, l])));
  /** @type {{ from: number, to: number, weight: number }[][]} */
  const pairs = kept.nodes.map(() => []);
  kept.source.forEach((source, i) => {
    const [from, to] = [position.get(source), position.get(kept.target[i])];
    if (from === undefined || to === undefined) return; // to the target
    pairs[/** @type {number} */ (layer.get(source))].push({ from, to, weight: Math.abs(kept.weight[i]) });
  });
  let total = 0;
  pairs.forEach((edges, l) => {
    if (!edges.length) return;
    const n = kept.nodes[l + 1].length;
    const sums = new Float64Array(n + 1);
    let all = 0;
    edges.sort((a, b) => a.from - b.from);
    for (let i = 0, j = 0; i < edges.length; i++) {
      for (; edges[j].from < edges[i].from; j++) {
        all += edges[j].weight;
        for (let k = rowOf(edges[j].to, n); k <= n; k += k & -k) sums[k] += edges[j].weight;
      }
      let above = 0;
      for (let k = rowOf(edges[i].to, n); k > 0; k -= k & -k) above += sums[k];
      total += edges[i].weight * (all - above);
    }
  });
  return total;
}

/** From a position counted from the middle to a row from 1 on. @param {number} position @param {number} n */
const rowOf = (position, n) => Math.round(position + (n - 1) / 2) + 1;

/** @param {number} from @param {number} to */
const range = (from, to) => Array.from({ length: to - from }, (_, i) => from + i);

/** Turns ranks into positions counted from the middle. @param {Float64Array} rank @param {number[]} ids */
function settle(rank, ids) {
  ids.sort((a, b) => rank[a] - rank[b] || a - b);
  ids.forEach((id, i) => (rank[id] = i - (ids.length - 1) / 2));
}

/** @param {Float64Array} rank @param {number[]} ids @param {Map<number, number>} centre */
function sortBy(rank, ids, centre) {
  ids.sort(
    (a, b) =>
      /** @type {number} */ (centre.get(a)) - /** @type {number} */ (centre.get(b)) ||
      rank[a] - rank[b],
  );
  ids.forEach((id, i) => (rank[id] = i - (ids.length - 1) / 2));
}

/** @template K, V @param {Map<K, V[]>} map @param {K} key @param {V} value */
function push(map, key, value) {
  const list = map.get(key);
  if (list) list.push(value);
  else map.set(key, [value]);
}
