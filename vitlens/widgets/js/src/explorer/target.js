// The class that is explained, and the prediction of the model.

/** @import { Model } from "../lib/types" */
import { decimals, fill, h, isolated, percent } from "../lib/dom.js";
import { listen, save } from "../lib/model.js";

const PREDICTED = "";

/**
 * The classes with their probabilities; the chosen one is explained.
 * @param {Model} model
 * @param {AbortSignal} signal
 */
export function targetChoice(model, signal) {
  const select = h("select", {
    class: "vl-select",
    onchange: () =>
      save(model, { target_choice: select.value === PREDICTED ? null : Number(select.value) }),
  });
  const element = h("label", { class: "vl-field vl-x-target" }, h("span", {}, "Explain"), select);

  function draw() {
    /** @type {string[]} */
    const classes = model.get("classes") ?? [];
    /** @type {number[]} */
    const probabilities = model.get("probabilities") ?? [];
    const { name, index, prediction } = model.get("explained") ?? {};
    const order = classes.map((_, i) => i);
    order.sort((a, b) => (probabilities[b] ?? 0) - (probabilities[a] ?? 0));
    const chosen = model.get("target_choice");
    const predicted = `the predicted class${prediction ? `: ${isolated(prediction[0])}` : ""}`;
    const isFunction = chosen === null && index === null;
    fill(
      select,
      h("option", { value: PREDICTED }, isFunction ? `${name} (a function)` : predicted),
      order.map((i) => {
        const p = probabilities[i];
        const text = p === undefined ? classes[i] : `${isolated(classes[i])}  ${percent(p)}`;
        return h("option", { value: i }, text);
      }),
    );
    select.value = chosen === null ? PREDICTED : `${chosen}`;
  }

  listen(model, ["classes", "probabilities", "explained", "target_choice"], draw, signal);
  draw();
  return element;
}

/**
 * The prediction in one line.
 * @param {Model} model
 * @param {AbortSignal} signal
 */
export function predictionLine(model, signal) {
  const element = h("p", { class: "vl-x-prediction", "aria-live": "polite" });
  function draw() {
    const { name, value, prediction } = model.get("explained") ?? {};
    if (!prediction) return fill(element);
    const other = name !== prediction[0] && h(
      "span",
      { class: "vl-muted" },
      `explained: ${isolated(name)} = ${decimals(value, 2)}`,
    );
    const [best, probability] = prediction;
    fill(element, "Predicted: ", h("strong", { dir: "auto" }, best), ` ${percent(probability)}`, other);
  }
  listen(model, ["explained"], draw, signal);
  draw();
  return element;
}
