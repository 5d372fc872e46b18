// Above the table: the layer, the search and the filters.

/** @import { Model } from "../lib/types" */
import { field, fill, h } from "../lib/dom.js";
import { same, save, slowSave } from "../lib/model.js";
import { createFilters } from "./filters.js";

/**
 * @param {Model} model
 * @param {(layer: number) => void} setLayer
 * @param {AbortSignal} signal
 */
export function createTools(model, setLayer, signal) {
  const saveSoon = slowSave(model, 250);
  const layers = h("select", {
    class: "vl-select",
    onchange: () => setLayer(Number(layers.value)),
  });
  const before = step("Previous layer", "‹", -1);
  const after = step("Next layer", "›", 1);
  const query = h("input", {
    class: "vl-input vl-browser-query",
    type: "search",
    placeholder: "number or name",
    title: "start of the number, or part of a name, a proposal or a class",
    oninput: () => saveSoon({ query: query.value }),
  });
  const activeOnly = h("input", {
    type: "checkbox",
    onchange: () => save(model, { active_only: activeOnly.checked }),
  });
  const least = h("input", {
    class: "vl-input vl-browser-least",
    type: "number",
    min: 0,
    step: "any",
    placeholder: "0",
    oninput: () => saveSoon({ min_activation: Math.max(0, Number(least.value) || 0) }),
  });
  const activity = h(
    "span",
    { class: "vl-browser-activity" },
    field("active only", activeOnly),
    field("activation at least", least),
  );
  const filters = createFilters(model, signal);
  const status = h("span", { class: "vl-muted", role: "status", "aria-live": "polite" });

  /** @param {string} label @param {string} sign @param {number} by */
  function step(label, sign, by) {
    const go = () => setLayer(neighbour(by));
    return h(
      "button",
      { class: "vl-button", type: "button", "aria-label": label, title: label, onclick: go },
      sign,
    );
  }

  /** The layer before or after the current one in the list; -1 for none. @param {number} by */
  function neighbour(by) {
    const layers = known();
    return layers[layers.indexOf(model.get("layer")) + by] ?? -1;
  }

  /** @returns {number[]} */
  const known = () => model.get("browser")?.layers ?? [];

  function update() {
    const numbers = known();
    const layer = model.get("layer");
    activity.hidden = !(model.get("browser")?.columns ?? []).includes("max_activation");
    filters.update();
    if (!same([...layers.options].map((option) => Number(option.value)), numbers)) {
      fill(layers, numbers.map((number) => h("option", { value: number }, `${number}`)));
    }
    layers.value = `${layer}`;
    before.disabled = neighbour(-1) < 0;
    after.disabled = neighbour(1) < 0;
    activeOnly.checked = model.get("active_only");
    // Text that is being typed stays unchanged.
    if (query.value !== model.get("query")) query.value = model.get("query");
    const typed = Math.max(0, Number(least.value) || 0);
    if (typed !== model.get("min_activation")) least.value = `${model.get("min_activation")}`;
  }

  signal.addEventListener("abort", () => element.remove(), { once: true });
  const element = h(
    "div",
    { class: "vl-toolbar vl-browser-tools" },
    h("span", { class: "vl-browser-layers" }, before, field("layer", layers), after),
    field("find", query),
    activity,
    filters.element,
    status,
  );
  return {
    element,
    update,
    neighbour,
    /** @param {string} text */
    setStatus(text) {
      if (status.textContent !== text) status.textContent = text;
    },
  };
}
