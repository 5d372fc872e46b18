// The heatmap of the node under the pointer, or else of the selected one, without a request to
// Python.

/** @import { Model, NodeKey } from "../lib/types" */
import { mountHeatmap } from "../heatmap/mount.js";
import { isolated } from "../lib/dom.js";
import { floatsOf, halfsOf, intsOf, listen, same } from "../lib/model.js";
import { overlay } from "./overlay.js";

const OWN = ["values", "value_name", "signed", "title"];
const WATCHED = [
  ...OWN, "hovered", "selected", "show", "labels", "graph_info", "node_features", "node_heat",
  "node_activations", "card", "card_data", "explained",
];

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mountHeatView(model, el, signal) {
  const own = overlay(model, Object.fromEntries(OWN.map((name) => [name, model.get(name)])));
  const find = candidateRows(model);

  function update() {
    const hovered = /** @type {NodeKey | null} */ (model.get("hovered"));
    const node = hovered ?? model.get("selected");
    const values = node && (find(node) ?? fromCard(model, node));
    if (!values) return own.put(Object.fromEntries(OWN.map((name) => [name, model.get(name)])));
    const importance = model.get("show") === "importance";
    return own.put({
      values,
      value_name: importance ? `importance for ${isolated(model.get("explained")?.name ?? "")}` : "activation",
      signed: importance,
      title: titleOf(node, model.get("labels")),
    });
  }

  listen(model, WATCHED, update, signal);
  update();
  mountHeatmap(own, el, signal);
}

/**
 * Finds a candidate's values per token.
 * @param {Model} model
 */
function candidateRows(model) {
  /** @type {unknown} */
  let known = null;
  /** @type {Map<string, number>} */
  let rows = new Map();

  function read() {
    const features = model.get("node_features");
    if (features === known) return;
    known = features;
    rows = new Map();
    /** @type {{ layers?: number[], counts?: number[] }} */
    const { layers = [], counts = [] } = model.get("graph_info") ?? {};
    const numbers = intsOf(features);
    let row = 0;
    for (const [column, layer] of layers.entries()) {
      for (let i = 0; i < counts[column]; i++, row++) rows.set(`${layer},${numbers[row]}`, row);
    }
  }

  /** @param {NodeKey} node @returns {Float32Array | null} */
  return (node) => {
    if (!model.get("graph_info")?.counts) {
      known = null;
      return null;
    }
    read();
    const row = rows.get(node.join());
    /** @type {DataView} */
    const all = model.get(model.get("show") === "importance" ? "node_heat" : "node_activations");
    if (row === undefined || !all?.byteLength) return null;
    const length = all.byteLength / rows.size;
    return halfsOf(new DataView(all.buffer, all.byteOffset + row * length, length));
  };
}

/** @param {Model} model @param {NodeKey} node @returns {Float32Array | null} */
function fromCard(model, node) {
  if (!same(model.get("card")?.node, node)) return null;
  const both = floatsOf(model.get("card_data"));
  if (!both.length) return null;
  const half = both.length / 2;
  return model.get("show") === "importance" ? both.subarray(half) : both.subarray(0, half);
}

/** @param {NodeKey} node @param {[number, number, string][]} labels */
function titleOf([layer, feature], labels) {
  const label = labels.find(([l, f]) => l === layer && f === feature)?.[2];
  const name = `Layer ${layer}, ${feature < 0 ? "error node" : `feature ${feature}`}`;
  return label ? `${name}: ${label}` : name;
}
