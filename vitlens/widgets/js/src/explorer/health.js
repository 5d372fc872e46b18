// How far the circuit can be trusted: a line that is always visible, and a table by layer.

/** @import { Model } from "../lib/types" */
import { counted, fill, h, percent, show } from "../lib/dom.js";
import { listen } from "../lib/model.js";

const LOW_VARIANCE = 0.8;
const LOST_ACCURACY = 0.1;
const RESIDUAL = 0.1;

const MEANING =
  "Explained variance: of the residual stream, by the SAE. Accuracy kept: the model's accuracy with "
  + "this SAE's reconstruction in place of the stream. Conservation residual: the target's value on "
  + "this image minus the sum of the layer's importances, as a share of the value; 0 is exact. "
  + "Importances are measured from the baselines, so the residual includes the effect of the "
  + "baselines and biases. Marked with ⚠: "
  + `variance below ${percent(LOW_VARIANCE)}, accuracy more than ${100 * LOST_ACCURACY} points `
  + `below the model's, a residual beyond ±${percent(RESIDUAL)}.`;

/**
 * @typedef {object} LayerHealth
 * @property {number} layer
 * @property {number} n_features
 * @property {string} kind
 * @property {number} max_active
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

/** @typedef {{ text: string, bad: boolean, unknown?: boolean }} Fact */

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
      "Variance of the stream explained by the SAEs; accuracy of the model, and with all SAEs; "
      + "largest difference between the sum of importances and the target. Click for all layers.",
    onclick: open,
  });
  function draw() {
    /** @type {Health} */
    const health = model.get("health");
    if (!health?.layers) return fill(element);
    const facts = summary(health);
    fill(element, "Layer health: ", facts.flatMap((fact, i) => [i ? " · " : "", factElement(fact)]));
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
    fill(root, text(health), table(health));
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
          text: `SAEs explain ${range(variance)}`,
          bad: Math.min(...variance) < LOW_VARIANCE,
        }
      : { text: "explained variance not measured", bad: true, unknown: true },
    accuracy_all === null || accuracy === null
      ? { text: "accuracy with all SAEs not measured", bad: true, unknown: true }
      : {
          text: `accuracy ${percent(accuracy)} → ${percent(accuracy_all)}`,
          bad: accuracy_all < accuracy - LOST_ACCURACY,
        },
    residuals.length
      ? { text: `residual up to ${percent(worst)}`, bad: worst > RESIDUAL }
      : { text: "residual not computed yet", bad: false, unknown: true },
  ];
}

/** @param {Health} health */
function text({ accuracy, accuracy_all, n_images, labelled, missing }) {
  const what = labelled ? "accuracy" : "agreement with the model";
  const parts = [];
  if (accuracy !== null && accuracy_all !== null) {
    parts.push(
      h("p", {}, `On ${counted(n_images ?? 0, "image")} the model's ${what} is ${percent(accuracy)}; with all its `
        + `SAEs and no error nodes ${percent(accuracy_all)}. `
        + "The features do not explain the difference."),
    );
  }
  if (missing.length) {
    parts.push(
      h("p", { class: "vl-x-missing" }, `Missing for this lens: ${missing.join(", ")}. `
        + "Measure these values (vitlens.training.health) before you rely on a circuit."),
    );
  }
  parts.push(
    h("p", { class: "vl-muted" }, MEANING),
  );
  return parts;
}

/** @param {Health} health */
function table({ layers, accuracy }) {
  const headers = [
    "layer", "SAE", "features", "most active per token", "explained variance", "dead features", "accuracy kept",
    "conservation residual",
  ];
  return h(
    "div",
    { class: "vl-x-scroll" },
    h(
      "table",
      { class: "vl-x-table" },
      h("thead", {}, h("tr", {}, headers.map((header) => h("th", { scope: "col" }, header)))),
      h(
        "tbody",
        {},
        layers.map((layer) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, layer.layer),
            h("td", {}, layer.kind),
            h("td", {}, layer.n_features),
            h("td", {}, layer.max_active < layer.n_features ? layer.max_active : "any"),
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
  return h("td", {}, factElement({ text: percent(value), bad: isBad(value) }));
}

/** @param {Fact} fact */
function factElement({ text: text, bad, unknown }) {
  const sign = h("span", { class: "vl-x-bad", role: "img", "aria-label": "warning: " }, "⚠ ");
  return h("span", { class: unknown ? "vl-muted" : "" }, bad && sign, text);
}

/** @param {LayerHealth[]} layers @param {"explained_variance" | "residual"} name */
const known = (layers, name) =>
  layers.map((layer) => layer[name]).filter((x) => x !== null);

/** @param {number[]} values */
const range = (values) =>
  `${show(100 * Math.min(...values))} to ${percent(Math.max(...values))}`;
