// What was tried before, to go back to.

/** @import { Model } from "../lib/types" */
import { apart, fill, h, percent, show } from "../lib/dom.js";
import { same } from "../lib/model.js";
import { nameOf } from "./lines.js";
import { ablations, wish } from "./wish.js";

/** @param {Model} model */
export function history(model) {
  const list = h("ol", { class: "vl-history" });
  const summary = h("summary", { "data-lm-suppress-shortcuts": "true" });
  const element = h("details", { class: "vl-history-box" }, summary, list);
  let last = "";
  return {
    element,
    update() {
      const past = model.get("history") ?? [];
      element.hidden = !past.length;
      const state = JSON.stringify([past, ablations(model), model.get("labels")]);
      if (state === last) return;
      last = state;
      summary.textContent = `History (${past.length})`;
      fill(
        list,
        [...past].reverse().map((entry) =>
          h(
            "li",
            {},
            h(
              "button",
              {
                class: "vl-button",
                "aria-pressed": String(same(entry.ablations, ablations(model))),
                onclick: () => wish(model, entry.ablations),
              },
              inWords(model, entry.ablations),
            ),
            h("span", {}, `${apart(entry.top[0])} ${percent(entry.top[1])}`),
            entry.target != null && h("span", { class: "vl-muted" }, `target ${show(entry.target)}`),
          ),
        ),
      );
    },
  };
}

/** @param {Model} model @param {import("./wish.js").Ablation[]} list */
function inWords(model, list) {
  const words = list.map(([l, f, value]) => `${nameOf(model, [l, f])} ${value == null ? "off" : `= ${show(value)}`}`);
  return words.length > 4 ? `${words.slice(0, 3).join(", ")} and ${words.length - 3} more` : words.join(", ");
}
