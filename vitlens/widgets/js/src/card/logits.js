// The logit lens: the classes whose logits a feature raises and lowers directly.

import { h, show } from "../lib/dom.js";

/** @typedef {[string, number]} Effect class and effect on its logit */

/** @param {Effect[]} up @param {Effect[]} down */
export function logitBars(up, down) {
  if (!up.length && !down.length) {
    return h("p", { class: "vl-muted" }, "No effect on this image.");
  }
  const widest = Math.max(...[...up, ...down].map(([, effect]) => Math.abs(effect)));
  return h("div", { class: "vl-card-logits" }, half("up", up, widest), half("down", down, widest));
}

/** @param {"up" | "down"} way @param {Effect[]} effects @param {number} widest */
function half(way, effects, widest) {
  const rows = effects.map(([name, effect]) =>
    h(
      "li",
      {},
      h("span", { class: "vl-card-class", title: name }, name),
      h(
        "span",
        { class: "vl-card-track" },
        h("span", {
          class: `vl-card-effect vl-${way}`,
          style: { width: `${((100 * Math.abs(effect)) / widest).toFixed(1)}%` },
        }),
      ),
      h("span", { class: "vl-card-number" }, `${effect > 0 ? "+" : ""}${show(effect)}`),
    ),
  );
  const text = way === "up" ? "raises" : "lowers";
  return h(
    "div",
    {},
    h("div", { class: "vl-card-way" }, text),
    rows.length
      ? h("ul", { "aria-label": text }, rows)
      : h("p", { class: "vl-muted" }, "no class"),
  );
}
