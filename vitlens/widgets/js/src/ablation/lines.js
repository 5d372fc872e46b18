// The nodes that are ablated, each with its value.

/** @import { Model, NodeKey } from "../lib/types" */
/** @import { Ablation } from "./request.js" */
import { fill, h, show } from "../lib/dom.js";
import { halfs, ints, same } from "../lib/model.js";
import { request, setTo, without } from "./request.js";

const ERROR = -1;
const WAIT = 120; // ms between requests while a slider moves
const BEYOND = 2; // the slider ends at twice the feature's largest activation

/** @param {Model} model */
export function lines(model) {
  const element = h("ul", { class: "vl-ablation-list" });
  /** @type {Map<string, ReturnType<typeof line>>} */
  const known = new Map();
  return {
    element,
    /** @param {Ablation[]} wanted */
    update(wanted) {
      const keys = wanted.map(([l, f]) => `${l}/${f}`);
      for (const key of known.keys()) if (!keys.includes(key)) known.delete(key);
      const rows = wanted.map(([l, f, value], i) => {
        let row = known.get(keys[i]);
        if (!row) known.set(keys[i], (row = line(model, [l, f])));
        row.update(value);
        return row.element;
      });
      // Existing rows are kept: a slider must not disappear during a drag.
      const existing = [...element.children];
      if (rows.length !== existing.length || rows.some((row, i) => row !== existing[i])) fill(element, rows);
    },
  };
}

/** @param {Model} model @param {NodeKey} key */
function line(model, key) {
  const most = largest(model, key);
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  let wanted = 0;
  /** @type {number | null | undefined} */
  let last;
  /** @param {number} value */
  const soon = (value) => {
    wanted = value;
    timer ??= setTimeout(() => {
      timer = undefined;
      setTo(model, key, wanted);
    }, WAIT);
  };
  const name = h("span", { class: "vl-ablation-name" });
  const slider = h("input", {
    type: "range",
    min: 0,
    max: BEYOND * (most || 1),
    step: (most || 1) / 50,
    oninput: () => soon(Number(slider.value)),
  });
  const number = h("input", {
    class: "vl-input",
    type: "number",
    step: "any",
    placeholder: "off",
    onchange: () => {
      if (number.value === "") setTo(model, key, null);
      else if (Number.isFinite(Number(number.value))) setTo(model, key, Number(number.value));
    },
  });
  const off = h(
    "button",
    { class: "vl-button", title: "set to its baseline", onclick: () => setTo(model, key, null) },
    "off",
  );
  const back = h("button", { class: "vl-button", onclick: () => request(model, without(model, [key])) }, "restore");
  const isError = key[1] === ERROR;
  const element = h(
    "li",
    {},
    name,
    off,
    !isError && h("span", { class: "vl-ablation-value" }, slider, number),
    !isError && most > 0 && h("span", { class: "vl-muted" }, `largest on this image: ${show(most)}`),
    back,
  );
  return {
    element,
    /** @param {number | null} value */
    update(value) {
      const text = nameOf(model, key);
      name.textContent = text;
      off.setAttribute("aria-pressed", String(value === null));
      off.setAttribute("aria-label", `Switch ${text} off`);
      back.setAttribute("aria-label", `Restore ${text}`);
      slider.setAttribute("aria-label", `Value of ${text}`);
      number.setAttribute("aria-label", `Value of ${text}, as a number`);
      if (timer === undefined) slider.value = String(value ?? 0);
      // Text that is being typed stays until the value itself changes.
      if (value !== last) number.value = value === null ? "" : String(Number(value.toPrecision(4)));
      last = value;
    },
  };
}

/** A node for people: its label, or layer and number.
 * @param {Model} model @param {NodeKey} key
 */
export function nameOf(model, key) {
  const label = (model.get("labels") ?? []).find((/** @type {any[]} */ [l, f]) => same([l, f], key))?.[2];
  return label ?? `${key[0]}/${key[1] === ERROR ? "error" : key[1]}`;
}

/** A feature's largest activation on the image; 0 when it is not known.
 * @param {Model} model @param {NodeKey} key
 */
function largest(model, [layer, feature]) {
  const { layers = [], counts = [] } = model.get("graph_info") ?? {};
  const column = layers.indexOf(layer);
  const features = ints(model, "node_features");
  const activations = halfs(model, "node_activations");
  let id = 0;
  for (let i = 0; i < column; i++) id += counts[i];
  const end = id + (counts[column] ?? 0);
  while (id < end && features[id] !== feature) id++;
  const tokens = activations.length / (features.length || 1);
  if (id >= end || !tokens) return 0;
  return activations.subarray(id * tokens, (id + 1) * tokens).reduce((a, b) => Math.max(a, b), 0);
}
