// Classes before and after, as pairs of bars.

import { fill, h, percent, show } from "../lib/dom.js";

const ROWS = 6;

export function bars() {
  const element = h("div", { class: "vl-bars", hidden: true });
  return {
    element,
    /** @param {any} outcome */
    update(outcome) {
      element.hidden = !outcome.after;
      if (!outcome.after) return fill(element);
      const { classes, before, after } = outcome;
      const order = classes
        .map((/** @type {string} */ _, /** @type {number} */ i) => i)
        .sort((/** @type {number} */ a, /** @type {number} */ b) => size(b) - size(a))
        .slice(0, ROWS);
      /** @param {number} i */
      function size(i) {
        return Math.max(before.probabilities[i], after.probabilities[i]);
      }
      fill(
        element,
        h(
          "div",
          { class: "vl-bars-key", "aria-hidden": "true" },
          h("span", { class: "vl-bar vl-bar-before" }),
          "before",
          h("span", { class: "vl-bar vl-bar-after" }),
          "after",
        ),
        h(
          "table",
          { class: "vl-bars-table" },
          h(
            "thead",
            {},
            h("tr", {}, h("th", {}, "class"), h("th", {}, "probability"), h("th", {}), h("th", {}, "logit")),
          ),
          h("tbody", {}, order.map((/** @type {number} */ i) => row(classes[i], i, before, after))),
        ),
      );
    },
  };
}

/**
 * @typedef {{ logits: number[], probabilities: number[] }} Output
 * @param {string} name @param {number} i @param {Output} before @param {Output} after
 */
function row(name, i, before, after) {
  const [p, q] = [before.probabilities[i], after.probabilities[i]];
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    h(
      "td",
      { class: "vl-bars-cell", "aria-hidden": "true" },
      h("span", { class: "vl-bar vl-bar-before", style: { width: `${100 * p}%` } }),
      h("span", { class: "vl-bar vl-bar-after", style: { width: `${100 * q}%` } }),
    ),
    h("td", { class: "vl-bars-number" }, `${percent(p)} → ${percent(q)}`),
    h("td", { class: "vl-bars-number" }, `${show(before.logits[i])} → ${show(after.logits[i])}`),
  );
}
