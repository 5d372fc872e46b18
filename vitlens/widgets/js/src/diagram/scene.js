// The layout: kept nodes and supernodes in columns, and the edges between them.

/** @import { Data } from "./data.js" */
/** @import { Kept } from "./prune.js" */
import { targetLayer } from "./data.js";

export const SIZE = {
  thumb: 46,
  token: 9, // a square for each prefix token, next to the thumbnail
  width: 62, // of a node with its text
  row: 74, // from one node of a column to the next
  pitch: [86, 168], // from one layer to the next, at least; and at most, on the screen
  target: [124, 70],
  head: 26, // room for the name of a layer
};

/**
 * A node, a supernode's members in one layer, or the target.
 * @typedef {object} Item
 * @property {string} key constant while the item exists
 * @property {number} layer block number; of the target, one after the last
 * @property {number} column index of the column
 * @property {number[]} ids candidates; the strongest first
 * @property {string} group the supernode's name when it is closed, else ""
 * @property {number} x
 * @property {number} y from the middle of the columns: rows stay in place while columns grow
 * @property {number} share
 *
 * @typedef {object} Link
 * @property {number} from index in `items`
 * @property {number} to
 * @property {number} weight
 * @property {number} share
 *
 * @typedef {object} Scene
 * @property {Item[]} items
 * @property {Link[]} links weakest first
 * @property {number[][]} out links that leave an item, by item
 * @property {number[][]} into links that lead to it
 * @property {Map<string, number>} indexOf index of an item by key
 * @property {Map<number, number>} itemOf candidates' items
 * @property {number[][]} columns items by column from above; the target is in the last column
 * @property {number} pitch
 * @property {number} width
 * @property {number} height
 * @property {number} thickest the largest share of a link, of either sign
 * @property {number} nodes kept nodes
 * @property {number} edges kept edges
 */

/**
 * @param {Data} data @param {Kept} kept @param {Float64Array} rank
 * @param {{ groups: Map<number, string>, pitch: number }} options `groups`: closed supernodes by
 * candidate; `pitch`: from one layer to the next
 * @returns {Scene}
 */
export function buildScene(data, kept, rank, { groups, pitch }) {
  /** @type {Item[]} */
  const items = [];
  const itemOf = new Map();
  const rows = kept.nodes.map((ids) => columnOf(data, ids, rank, groups));
  const height = heightOf(Math.max(...rows.map((row) => row.length)));
  const columns = rows.map((row, column) =>
    row.map((item, position) => {
      item.x = column * pitch;
      item.y = (position - row.length / 2) * SIZE.row;
      for (const id of item.ids) itemOf.set(id, items.length);
      return items.push(item) - 1;
    }),
  );
  itemOf.set(data.total, items.length);
  columns.push([items.length]);
  const x = data.counts.length * pitch;
  items.push({
    key: "target",
    layer: targetLayer(data),
    column: data.counts.length,
    ids: [data.total],
    group: "",
    x,
    y: -SIZE.target[1] / 2 - 8,
    share: 1,
  });
  const links = linksOf(kept, itemOf, groups.size > 0);
  /** @type {number[][]} */
  const out = items.map(() => []);
  /** @type {number[][]} */
  const into = items.map(() => []);
  links.forEach((link, i) => {
    out[link.from].push(i);
    into[link.to].push(i);
  });
  return {
    items,
    links,
    out,
    into,
    indexOf: new Map(items.map((item, i) => [item.key, i])),
    itemOf,
    columns,
    pitch,
    width: x + SIZE.target[0],
    height,
    thickest: links.length ? Math.abs(links[links.length - 1].share) : 0,
    nodes: kept.nodes.reduce((sum, ids) => sum + ids.length, 0),
    edges: kept.source.length,
  };
}

/** Height of columns with this many rows. @param {number} rows */
export const heightOf = (rows) => SIZE.head + Math.max(2, rows) * SIZE.row;

/**
 * From one layer to the next, so that columns fill the stage's width at a scale.
 * @param {number} layers @param {number} width of the stage @param {number} scale
 */
export function pitchFor(layers, width, scale) {
  const wide = (width / scale - SIZE.target[0]) / layers;
  return Math.max(SIZE.pitch[0], Math.min(wide, SIZE.pitch[1] / Math.min(1, scale)));
}

/** @param {Data} data @param {number[]} ids @param {Float64Array} rank @param {Map<number, string>} groups */
function columnOf(data, ids, rank, groups) {
  /** @type {Map<string, { item: Item, rank: number }>} */
  const made = new Map();
  for (const id of ids) {
    const group = groups.get(id) ?? "";
    const key = group ? `group ${data.layers[id]} ${group}` : String(id);
    const known = made.get(key);
    if (!known) {
      const item = { key, layer: data.layers[id], column: data.columns[id], ids: [id], group, x: 0, y: 0, share: data.shares[id] };
      made.set(key, { item, rank: rank[id] });
      continue;
    }
    const { item } = known;
    item.share += data.shares[id];
    known.rank += (rank[id] - known.rank) / (item.ids.length + 1);
    item.ids.push(id);
    item.ids.sort((a, b) => data.importances[b] - data.importances[a]);
  }
  return [...made.values()].sort((a, b) => a.rank - b.rank).map(({ item }) => item);
}

/** Edges between items; those of a supernode's members are added up.
 * @param {Kept} kept @param {Map<number, number>} itemOf @param {boolean} grouped whether there are
 * supernodes @returns {Link[]}
 */
function linksOf(kept, itemOf, grouped) {
  /** @type {Map<number, Link>} */
  const known = new Map();
  /** @type {Link[]} */
  const links = [];
  for (let i = 0; i < kept.source.length; i++) {
    const from = /** @type {number} */ (itemOf.get(kept.source[i]));
    const to = /** @type {number} */ (itemOf.get(kept.target[i]));
    const link = { from, to, weight: kept.weight[i], share: kept.share[i] };
    if (grouped) {
      const number = from * itemOf.size + to;
      const sum = known.get(number);
      if (sum) {
        sum.weight += link.weight;
        sum.share += link.share;
        continue;
      }
      known.set(number, link);
    }
    links.push(link);
  }
  return links.sort((a, b) => Math.abs(a.share) - Math.abs(b.share));
}
