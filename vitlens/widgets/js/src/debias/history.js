// Earlier choices, to restore.

/** @import { Model, NodeKey } from "../lib/types" */
import { fill, h } from "../lib/dom.js";
import { accuracy, features, goTo, idOf, labelOf } from "./request.js";

const FEW = 4;

/** @param {Model} model */
export function history(model) {
  const list = h("ol", { class: "vl-debias-history" });
  const title = h("summary", { "data-lm-suppress-shortcuts": "true" });
  const element = h("details", {}, title, list);
  let last = "";
  return {
    element,
    update() {
      const choices = model.get("choices") ?? [];
      const current = model.get("choice");
      const state = JSON.stringify([choices, current, model.get("labels")]);
      if (state === last) return;
      last = state;
      title.textContent = `History (${choices.length})`;
      fill(
        list,
        choices.map((/** @type {any} */ entry, /** @type {number} */ i) =>
          h(
            "li",
            {},
            h(
              "button",
              {
                class: "vl-button",
                title: entry.chosen.map(idOf).join(", "),
                "aria-current": i === current ? "step" : null,
                onclick: () => goTo(model, i),
              },
              describe(model, entry.chosen),
            ),
            h(
              "span",
              { class: "vl-muted" },
              entry.worst == null
                ? "not computed"
                : `worst ${accuracy(entry.worst)}, average ${accuracy(entry.average)}`,
            ),
          ),
        ),
      );
    },
  };
}

/** @param {Model} model @param {NodeKey[]} list */
function describe(model, list) {
  if (!list.length) return "nothing";
  const names = list.slice(0, FEW).map((key) => labelOf(model, key) || idOf(key));
  return `${features(list.length)}: ${names.join(", ")}${list.length > FEW ? ", …" : ""}`;
}
