// The highlighted paths of a node, and the moves of arrow keys.

/** @import { Scene } from "./scene.js" */

const FAINT = 0.15; // weaker paths are not highlighted

/**
 * An item's edges, and the paths up- and downstream. Along a path the light fades with each edge's
 * weight against the strongest edge of the item it comes from, so that main paths stand out.
 * @param {Scene} scene @param {number} item
 * @returns {{ links: Map<number, number>, items: Set<number> }} links with their light, 0 to 1
 */
export function lit(scene, item) {
  const links = new Map();
  const items = new Set([item]);
  spread(scene, item, scene.into, "from", links, items);
  spread(scene, item, scene.out, "to", links, items);
  return { links, items };
}

/**
 * @param {Scene} scene @param {number} start @param {number[][]} edgesOf @param {"from" | "to"} end
 * @param {Map<number, number>} links @param {Set<number>} items
 */
function spread(scene, start, edgesOf, end, links, items) {
  let front = new Map([[start, 1]]);
  for (let first = true; front.size; first = false) {
    const next = new Map();
    for (const [item, light] of front) {
      let most = 0;
      for (const i of edgesOf[item]) most = Math.max(most, Math.abs(scene.links[i].weight));
      for (const i of edgesOf[item]) {
        const link = scene.links[i];
        const passed = light * (Math.abs(link.weight) / most);
        if (passed < FAINT && !first) continue;
        links.set(i, Math.max(links.get(i) ?? 0, first ? 1 : passed));
        items.add(link[end]);
        next.set(link[end], Math.max(next.get(link[end]) ?? 0, passed));
      }
    }
    front = next;
  }
}

/**
 * The node that an arrow key moves to: along the strongest edge, or within the layer.
 * @param {Scene} scene @param {number} item @param {string} key
 * @returns {number | undefined}
 */
export function neighbour(scene, item, key) {
  const column = scene.columns[scene.items[item].column];
  const row = column.indexOf(item);
  if (key === "ArrowUp") return column[row - 1];
  if (key === "ArrowDown") return column[row + 1];
  const [edges, end] = key === "ArrowLeft" ? [scene.into[item], "from"] : [scene.out[item], "to"];
  let best;
  let most = -1;
  for (const i of edges) {
    const size = Math.abs(scene.links[i].weight);
    if (size <= most) continue;
    most = size;
    best = scene.links[i][/** @type {"from" | "to"} */ (end)];
  }
  return best;
}
