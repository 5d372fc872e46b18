// How far the graph can be trusted: a line that is always in sight, and a table by layer.

/** @import { Model } from "../lib/types" */
import { counted, fill, h, percent, show } from "../lib/dom.js";
import { listen } from "../lib/model.js";

const LOW_VARIANCE = 0.8;
const LOST_ACCURACY = 0.1;
const RESIDUAL = 0.1;

const MEANING =
  "Explained variance: of the residual stream, by the SAE. Accuracy kept: with this SAE alone in "
  + "place of the stream. Conservation residual: what the importances of a layer's nodes lack of "
  + "the target's value on this image, as a part of it; 0 would be perfect. Importances count from "
  + "the baselines, so what the baselines and biases themselves give is in it, too. Marked with ⚠: "
  + `variance below ${percent(LOW_VARIANCE)}, accuracy more than ${100 * LOST_ACCURACY} points `
  + `below the model's, a residual beyond ±${percent(RESIDUAL)}.`;

/**
 * @typedef {object} LayerHealth
 * @property {number} layer
 * @property {number} size
 * @property {number} k
 * @property {number | null} explained_variance
 * @property {number | null} dead_fraction
 * @property {number | null} accuracy_kept
 * @property {number | null} residual
 */

/**
 * @typedef {object} Health
 * @property {LayerHealth[]} layers
 * @property {number | null} accuracy
 * @property {number | null} accuracy_all
 * @property {number | null} n_images
 * @property {boolean} labelled
 * @property {string[]} missing
 */

/** @typedef {{ words: string, bad: boolean, unknown?: boolean }} Fact */

/**
 * @param {Model} model
 * @param {() => void} open shows the table
 * @param {AbortSignal} signal
 */
export function healthLine(model, open, signal) {
  const element = h("button", {
    type: "button",
    class: "vl-button vl-quiet vl-x-health-line",
    title:
      "Variance of the stream that the SAEs explain; accuracy of the model, and with all SAEs in "
      + "its stream; how far importances are from adding up to the target. Click for every layer.",
    onclick: open,
  });
  function draw() {
    /** @type {Health} */
    const health = model.get("health");
    if (!health?.layers) return fill(element);
    const facts = summary(health);
    fill(element, "Layer health: ", facts.flatMap((fact, i) => [i ? " · " : "", worded(fact)]));
  }
  listen(model, ["health"], draw, signal);
  draw();
  return element;
}

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mountHealth(model, el, signal) {
  const root = h("div", { class: "vl-x-health" });
  el.append(root);
  function draw() {
    /** @type {Health} */
    const health = model.get("health");
    if (!health?.layers) return fill(root);
    fill(root, words(health), table(health));
  }
  listen(model, ["health"], draw, signal);
  draw();
}

/** @param {Health} health @returns {Fact[]} */
function summary({ layers, accuracy, accuracy_all }) {
  const variance = known(layers, "explained_variance");
  const residuals = known(layers, "residual").map(Math.abs);
  const worst = Math.max(...residuals);
  return [
    variance.length
      ? {
          words: `SAEs explain ${range(variance)}`,
          bad: Math.min(...variance) < LOW_VARIANCE,
        }
      : { words: "explained variance not measured", bad: true, unknown: true },
    accuracy_all === null || accuracy === null
      ? { words: "accuracy with all SAEs not measured", bad: true, unknown: true }
      : {
          words: `accuracy ${percent(accuracy)} → ${percent(accuracy_all)}`,
          bad: accuracy_all < accuracy - LOST_ACCURACY,
        },
    residuals.length
      ? { words: `residual up to ${percent(worst)}`, bad: worst > RESIDUAL }
      : { words: "residual not known yet", bad: false, unknown: true },
  ];
}

/** @param {Health} health */
function words({ accuracy, accuracy_all, n_images, labelled, missing }) {
  const what = labelled ? "accuracy" : "agreement with the model";
  const parts = [];
  if (accuracy !== null && accuracy_all !== null) {
    parts.push(
      h("p", {}, `On ${counted(n_images ?? 0, "image")} the model's ${what} is ${percent(accuracy)}; with all its `
        + `SAEs and no error nodes ${percent(accuracy_all)}. `
        + "What is lost there, the features do not explain."),
    );
  }
  if (missing.length) {
    parts.push(
      h("p", { class: "vl-x-missing" }, `Missing for this lens: ${missing.join(", ")}. `
        + "Until it is measured (vitlens.training.health), do not trust a graph too far."),
    );
  }
  parts.push(
    h("p", { class: "vl-muted" }, MEANING),
  );
  return parts;
}

/** @param {Health} health */
function table({ layers, accuracy }) {
  const heads = [
    "layer", "features", "active a token", "explained variance", "dead features", "accuracy kept",
    "conservation residual",
  ];
  return h(
    "div",
    { class: "vl-x-scroll" },
    h(
      "table",
      { class: "vl-x-table" },
      h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
      h(
        "tbody",
        {},
        layers.map((layer) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, layer.layer),
            h("td", {}, layer.size),
            h("td", {}, layer.k),
            cell(layer.explained_variance, (x) => x < LOW_VARIANCE),
            cell(layer.dead_fraction, () => false),
            cell(layer.accuracy_kept, (x) => accuracy !== null && x < accuracy - LOST_ACCURACY),
            cell(layer.residual, (x) => Math.abs(x) > RESIDUAL),
          ),
        ),
      ),
    ),
  );
}

/** @param {number | null} value @param {(value: number) => boolean} isBad */
function cell(value, isBad) {
  if (value === null) return h("td", { class: "vl-muted" }, "not measured");
  return h("td", {}, worded({ words: percent(value), bad: isBad(value) }));
}

/** @param {Fact} fact */
function worded({ words: text, bad, unknown }) {
  const sign = h("span", { class: "vl-x-bad", role: "img", "aria-label": "warning: " }, "⚠ ");
  return h("span", { class: unknown ? "vl-muted" : "" }, bad && sign, text);
}

/** @param {LayerHealth[]} layers @param {"explained_variance" | "residual"} name */
const known = (layers, name) =>
  layers.map((layer) => layer[name]).filter((x) => x !== null);

/** @param {number[]} values */
const range = (values) =>
  `${show(100 * Math.min(...values))} to ${percent(Math.max(...values))}`;
