// The name of a node: its layer and number, and the name that people gave it, to edit.

/** @import { Model, NodeKey } from "../lib/types" */
import { h } from "../lib/dom.js";
import { save } from "../lib/model.js";

/** @typedef {[number, number, string]} Label */

/** @param {Model} model @param {NodeKey} node */
export function nodeName(model, [layer, feature]) {
  if (feature === -2) return model.get("card")?.target ?? "target";
  return `${layer}/${feature === -1 ? "error" : feature}`;
}

/** @param {Model} model @param {NodeKey} node */
export function labelOf(model, [layer, feature]) {
  /** @type {Label[]} */
  const labels = model.get("labels") ?? [];
  return labels.find(([l, f]) => l === layer && f === feature)?.[2] ?? "";
}

/** @param {Model} model @param {AbortSignal} signal */
export function createName(model, signal) {
  /** @type {NodeKey | null} */
  let node = null;
  const id = h("span", { class: "vl-card-id" });
  const input = h("input", {
    class: "vl-input vl-card-label",
    placeholder: "name this feature",
    "aria-label": "Name",
    maxlength: 200,
  });
  const commit = () => {
    if (!node || input.value.trim() === labelOf(model, node)) return;
    save(model, { labels: renamed(model.get("labels") ?? [], node, input.value.trim()) });
  };
  input.addEventListener("change", commit, { signal });
  input.addEventListener(
    "keydown",
    (event) => {
      if (event.key !== "Enter" && event.key !== "Escape") return;
      if (event.key === "Escape" && node) input.value = labelOf(model, node);
      commit();
      event.stopPropagation();
      input.blur();
    },
    { signal },
  );

  return {
    /** @param {string} text */
    give(text) {
      input.value = text;
      commit();
    },
    element: h("header", { class: "vl-card-name" }, id, input),
    /** @param {NodeKey | undefined} next */
    update(next) {
      const moved = node?.[0] !== next?.[0] || node?.[1] !== next?.[1];
      node = next ?? null;
      if (!node) return;
      id.textContent = nodeName(model, node);
      input.hidden = node[1] === -2;
      // Text that is being typed stays unchanged.
      if (moved || input !== /** @type {Document} */ (input.getRootNode()).activeElement) {
        input.value = labelOf(model, node);
      }
    },
  };
}

/** @param {Label[]} labels @param {NodeKey} node @param {string} text @returns {Label[]} */
function renamed(labels, [layer, feature], text) {
  const others = labels.filter(([l, f]) => l !== layer || f !== feature);
  return text ? [...others, [layer, feature, text]] : others;
}
