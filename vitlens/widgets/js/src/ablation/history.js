// Earlier ablations, to restore.

/** @import { Model } from "../lib/types" */
import { fill, h, isolated, percent, show } from "../lib/dom.js";
import { same } from "../lib/model.js";
import { nameOf } from "./lines.js";
import { ablations, request } from "./request.js";

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
                onclick: () => request(model, entry.ablations),
              },
              describe(model, entry.ablations),
            ),
            h("span", {}, `${isolated(entry.top[0])} ${percent(entry.top[1])}`),
            entry.target != null && h("span", { class: "vl-muted" }, `target ${show(entry.target)}`),
          ),
        ),
      );
    },
  };
}

/** @param {Model} model @param {import("./request.js").Ablation[]} list */
function describe(model, list) {
  const text = list.map(([l, f, value]) => `${nameOf(model, [l, f])} ${value == null ? "off" : `= ${show(value)}`}`);
  return text.length > 4 ? `${text.slice(0, 3).join(", ")} and ${text.length - 3} more` : text.join(", ");
}
