// Minimum values of columns: one is set at a time; each can be removed with its button.

/** @import { Model } from "../lib/types" */
import { field, fill, h, show } from "../lib/dom.js";
import { same, save, slowSave } from "../lib/model.js";
import { headerOf, ON_IMAGE } from "./columns.js";

/** @param {Model} model @param {AbortSignal} signal */
export function createFilters(model, signal) {
  const saveSoon = slowSave(model, 250);
  /** @type {string[]} */
  let columns = [];
  const which = h("select", {
    class: "vl-select",
    "aria-label": "Column to filter by",
    onchange: () => (least.value = text(set()[which.value])),
  });
  const least = h("input", {
    class: "vl-input vl-browser-least",
    type: "number",
    step: "any",
    placeholder: "any",
    "aria-label": "Minimum",
    oninput: () => {
      const { [which.value]: _, ...others } = set();
      const value = least.value === "" ? NaN : Number(least.value);
      saveSoon({ at_least: Number.isNaN(value) ? others : { ...others, [which.value]: value } });
    },
  });
  const chips = h("span", { class: "vl-browser-filters" });
  const element = h(
    "span",
    { class: "vl-browser-filters", hidden: true },
    field("filter", which),
    field("at least", least),
    chips,
  );
  signal.addEventListener("abort", () => element.remove(), { once: true });

  /** @returns {Record<string, number>} */
  const set = () => model.get("at_least") ?? {};

  /** @param {string} name */
  function drop(name) {
    const { [name]: _, ...others } = set();
    if (name === which.value) least.value = "";
    save(model, { at_least: others });
  }

  return {
    element,
    update() {
      /** @type {string[]} */
      const all = model.get("browser")?.columns ?? [];
      const found = all.filter((name) => !ON_IMAGE.includes(name));
      if (!same(found, columns)) {
        columns = found;
        fill(which, columns.map((name) => h("option", { value: name, title: name }, headerOf(name))));
        least.value = text(set()[which.value]);
      }
      element.hidden = !columns.length;
      const typed = least.value === "" ? undefined : Number(least.value);
      if (typed !== set()[which.value]) least.value = text(set()[which.value]);
      fill(
        chips,
        Object.entries(set()).map(([name, value]) =>
          h(
            "button",
            {
              type: "button",
              class: "vl-browser-filter",
              title: name,
              "aria-label": `Remove the filter: ${headerOf(name)} at least ${show(value)}`,
              onclick: () => drop(name),
            },
            `${headerOf(name)} ≥ ${show(value)} ×`,
          ),
        ),
      );
    },
  };
}

/** @param {number | undefined} value */
const text = (value) => (value === undefined ? "" : String(value));
