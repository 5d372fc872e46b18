// Measured effects of cutting edges, with the predictions: at the current node and under the pointer.

/** @import { Data } from "./data.js" */
/** @import { Diagram } from "./diagram.js" */
import { counted, decimals, h, show } from "../lib/dom.js";
import { listen } from "../lib/model.js";
import { featureName, idOf } from "./data.js";
import { alongEdge } from "./edges.js";

const SHOWN = 4; // edges on each side of a node, the strongest
const NEAR = 5; // pixels from the pointer to an edge
const STEPS = 48; // sampled points of an edge
/** @type {never[]} */
const NONE = [];

/**
 * @typedef {object} Checked
 * @property {number} from a candidate
 * @property {number} to a candidate, or the target
 * @property {number} predicted
 * @property {number} measured
 *
 * @typedef {Map<number, string>} Labels by candidate
 */

/** @param {Diagram} diagram */
export function createMeasured(diagram) {
  const { model, signal, stage } = diagram;
  /** @type {unknown[]} */
  let read = [];
  /** @type {Checked[]} those among the candidates */
  let checked = [];
  /** @type {unknown[]} */
  let drawn = [];
  /** @type {HTMLElement | null} */
  let element = null;

  /** @param {Data} data */
  function refresh(data) {
    const sent = model.get("measured") ?? NONE;
    if (read[0] === data && read[1] === sent) return;
    read = [data, sent];
    checked = sent.flatMap((/** @type {any[]} */ [source, target, predicted, measured]) => {
      const [from, to] = [idOf(data, source), idOf(data, target)];
      return from === undefined || to === undefined ? [] : [{ from, to, predicted, measured }];
    });
  }

  function point(/** @type {PointerEvent} */ event) {
    const { data } = diagram;
    if (!data) return;
    refresh(data);
    const box = stage.getBoundingClientRect();
    const found = checked.length ? nearest(event.clientX - box.left, event.clientY - box.top) : null;
    const text = found ? textOf(data, found, diagram.nodeStates(data).labels) : "";
    if (stage.title !== text) stage.title = text;
  }

  /** The checked edge at a point of the stage. @param {number} x @param {number} y */
  function nearest(x, y) {
    const { scene, view } = diagram;
    if (!scene || diagram.pointed) return null;
    const drawnLinks = new Set(scene.links.map(({ from, to }) => `${from} ${to}`));
    const [px, py] = [(x - view.x) / view.scale, (y - view.y) / view.scale];
    let best = NEAR / view.scale;
    let found = null;
    for (const edge of checked) {
      const [from, to] = [scene.itemOf.get(edge.from), scene.itemOf.get(edge.to)];
      if (from === undefined || to === undefined || !drawnLinks.has(`${from} ${to}`)) continue;
      const [start, end] = [scene.items[from], scene.items[to]];
      if (start.ids.length > 1 || end.ids.length > 1) continue; // the edge of a supernode is a sum
      for (let i = 0; i <= STEPS; i++) {
        const [ex, ey] = alongEdge(start, end, i / STEPS);
        const far = Math.hypot(ex - px, ey - py);
        if (far < best) [best, found] = [far, edge];
      }
    }
    return found;
  }

  listen(model, ["measured"], () => diagram.plan("light"), signal);
  stage.addEventListener("pointermove", point, { signal });
  return {
    /** A node's checked edges; null when none was.
     * @param {Data} data @param {number | undefined} id
     */
    table(data, id) {
      refresh(data);
      const state = [data, checked, id, model.get("labels")];
      if (state.some((one, i) => one !== drawn[i])) {
        drawn = state;
        element = id === undefined ? null : tableOf(data, checked, id, diagram.nodeStates(data).labels);
      }
      return element;
    },
  };
}

/** In percent of the target, where it is not 0.
 * @param {Data} data @param {Checked[]} checked @param {number} id @param {Labels} labels
 */
function tableOf(data, checked, id, labels) {
  const sides = /** @type {const} */ ([
    ["from", checked.filter(({ to }) => to === id)],
    ["to", checked.filter(({ from }) => from === id)],
  ]);
  if (sides.every(([, edges]) => !edges.length)) return null;
  const share = (/** @type {number} */ change) => h("td", { title: signed(change) }, data.goal.value ? percent(change / data.goal.value) : "–");
  return h(
    "table",
    { class: "vl-side-measured" },
    h("caption", { title: "Decrease of the target when only this edge is cut" }, "Edges cut, % of target"),
    h("tr", {}, h("td"), column("predicted"), column("measured")),
    sides.flatMap(([end, edges]) => [
      ...edges
        .sort((a, b) => Math.abs(b.predicted) - Math.abs(a.predicted))
        .slice(0, SHOWN)
        .map((edge) => {
          const name = nodeName(data, edge[end], labels);
          const header = h("th", { scope: "row", title: name, "aria-label": `${end} ${name}` });
          header.textContent = `${end === "from" ? "←" : "→"} ${name}`;
          return h("tr", {}, header, share(edge.predicted), share(edge.measured));
        }),
      edges.length > SHOWN &&
        h("tr", {}, h("td", { colspan: 3, class: "vl-muted" }, `${end} ${counted(edges.length - SHOWN, "weaker one")}`)),
    ]),
  );
}

/** @param {Data} data @param {Checked} edge @param {Labels} labels */
function textOf(data, { from, to, predicted, measured }, labels) {
  const [source, target] = [from, to].map((id) => nodeName(data, id, labels));
  return `${source} → ${target}: predicted ${signed(predicted)}, measured ${signed(measured)}`;
}

/** @param {Data} data @param {number} id @param {Labels} labels */
function nodeName(data, id, labels) {
  if (id === data.total) return "the target";
  return labels.get(id) ?? `${data.layers[id]}/${featureName(data.features[id])}`;
}

/** A column's header, abbreviated. @param {string} word */
const column = (word) => h("th", { scope: "col", title: word, "aria-label": word }, `${word.slice(0, 4)}.`);

/** @param {number} x */
const percent = (x) => decimals(100 * x, 1);

/** @param {number} x */
const signed = (x) => `${x > 0 ? "+" : ""}${show(x)}`;
