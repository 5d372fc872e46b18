// Above the map: the legend, the layers and the lasso; below it: the chosen features.

/** @import { Model, NodeKey } from "../lib/types" */
/** @import { Colours } from "./colours.js" */
import { headerOf } from "../browser/columns.js";
import { labelOf, nodeName } from "../card/name.js";
import { counted, field, fill, h } from "../lib/dom.js";
import { same, save } from "../lib/model.js";
import { cssOf, greyOf } from "./colours.js";

const LISTED = 24;
const STEPS = 33;

/**
 * @param {Model} model
 * @param {{ lasso: (on: boolean) => void, zoom: (factor: number) => void, fit: () => void,
 *   chooseAll: () => void }} actions
 */
export function createTools(model, actions) {
  const by = h("select", {
    class: "vl-select",
    onchange: () => save(model, { colour_by: by.value }),
  });
  const layers = h("div", { class: "vl-map-layers", role: "group", "aria-label": "Layers shown" });
  const lasso = button("Lasso", "Draw around features to choose them (Shift adds; L)", () =>
    actions.lasso(lasso.getAttribute("aria-pressed") !== "true"),
  );
  const legend = h("div", { class: "vl-map-legend" });
  const element = h(
    "div",
    { class: "vl-toolbar vl-map-tools" },
    field("colour by", by),
    lasso,
    button("Choose all", "Choose all features of the layers shown", actions.chooseAll),
    button("−", "Zoom out", () => actions.zoom(0.7)),
    button("+", "Zoom in", () => actions.zoom(1.4)),
    button("Fit", "Show all", actions.fit),
    legend,
  );
  /** @type {string[]} */
  let choices = [];

  /** @param {number} layer @param {number[]} numbers of all layers */
  function toggle(layer, numbers) {
    const now = shownLayers(model, numbers);
    const next = now.includes(layer) ? now.filter((l) => l !== layer) : [...now, layer];
    const all = next.length === 0 || next.length === numbers.length;
    save(model, { map_layers: all ? [] : next.sort((a, b) => a - b) });
  }

  return {
    element,
    layers,
    /** @param {boolean} on */
    setLasso: (on) => lasso.setAttribute("aria-pressed", `${on}`),
    /**
     * @param {Colours} colours @param {boolean} dark
     */
    update(colours, dark) {
      /** @type {{ layers: number[], columns: string[] }} */
      const { layers: numbers, columns } = model.get("map");
      const names = ["layer", "kind", ...columns];
      if (!same(names, choices)) {
        choices = names;
        fill(by, names.map((name) => h("option", { value: name, title: name }, headerOf(name))));
      }
      by.value = model.get("colour_by");
      const shown = shownLayers(model, numbers);
      const last = Math.max(1, numbers.length - 1);
      const byLayer = by.value === "layer" && colours.ramp;
      const focused = layers.contains(active(layers)) ? active(layers)?.dataset.layer : undefined;
      fill(
        layers,
        h("span", { class: "vl-muted" }, "layers"),
        numbers.map((layer, i) =>
          h(
            "button",
            {
              type: "button",
              class: "vl-map-layer",
              dataset: { layer },
              "aria-pressed": `${shown.includes(layer)}`,
              "aria-label": `Layer ${layer}`,
              onclick: () => toggle(layer, numbers),
            },
            byLayer && swatch(cssOf(byLayer(i / last))),
            layer,
          ),
        ),
        shown.length < numbers.length &&
          button("All layers", "Show all layers", () => save(model, { map_layers: [] })),
      );
      if (focused) /** @type {HTMLElement} */ (layers.querySelector(`[data-layer="${focused}"]`))?.focus();
      fill(legend, legendOf(by.value, colours, dark));
    },
  };
}

/** The layers that are shown. @param {Model} model @param {number[]} numbers of all layers */
export function shownLayers(model, numbers) {
  /** @type {number[]} */
  const some = model.get("map_layers") ?? [];
  return some.length ? some : numbers;
}

/** @param {string} by @param {Colours} colours @param {boolean} dark */
function legendOf(by, { ramp, ends, named, missing }, dark) {
  const none = missing && entry("not measured", cssOf(greyOf(dark)));
  if (named) {
    return named.map(([name, colour]) =>
      entry(name === "none" ? "none above chance" : name, cssOf(colour)),
    );
  }
  if (!ramp || !ends) return [none]; // layers have their colours on their buttons
  const stops = Array.from({ length: STEPS }, (_, i) => cssOf(ramp(i / (STEPS - 1))));
  const unit = by === "frequency" ? "frequency, logarithmic" : headerOf(by);
  return [
    h(
      "span",
      { class: "vl-legend", role: "img", "aria-label": `Colours: ${unit}, ${ends.join(" to ")}` },
      h("span", { class: "vl-legend-label" }, unit),
      h(
        "span",
        { class: "vl-legend-body" },
        h("span", {
          class: "vl-legend-bar",
          style: { "background-image": `linear-gradient(to right, ${stops.join(",")})` },
        }),
        h("span", { class: "vl-legend-ends" }, ends.map((x) => h("span", {}, x))),
      ),
    ),
    none,
  ];
}

/** @param {string} text @param {string} colour */
const entry = (text, colour) => h("span", { class: "vl-map-entry" }, swatch(colour), text);

/** @param {string} colour */
const swatch = (colour) =>
  h("span", {
    class: "vl-map-swatch",
    style: { "background-image": `linear-gradient(${colour}, ${colour})` },
  });

/** The label contains the visible text, for speech control.
 * @param {string} text @param {string} hint @param {() => void} onclick
 */
function button(text, hint, onclick) {
  const isPart = !/\w/.test(text) || hint.toLowerCase().includes(text.toLowerCase());
  const label = isPart ? hint : `${text}: ${hint}`;
  return h("button", { type: "button", class: "vl-button", title: hint, "aria-label": label, onclick }, text);
}

/** @param {Element} element */
const active = (element) =>
  /** @type {HTMLElement | null} */ (/** @type {Document} */ (element.getRootNode()).activeElement);

/** The chosen features, to select one by one.
 * @param {Model} model
 */
export function createChosen(model) {
  const element = h("div", { class: "vl-map-chosen" });
  return {
    element,
    update() {
      /** @type {NodeKey[]} */
      const chosen = model.get("chosen") ?? [];
      element.hidden = !chosen.length;
      const more = chosen.length - LISTED;
      fill(
        element,
        h(
          "span",
          { role: "status" },
          `${counted(chosen.length, "feature")} chosen`,
        ),
        button("Clear", "Clear the choice", () => save(model, { chosen: [] })),
        chosen.slice(0, LISTED).map((node) =>
          h(
            "button",
            {
              type: "button",
              class: "vl-map-node",
              onclick: () => save(model, { selected: node }),
            },
            `${nodeName(model, node)} ${labelOf(model, node)}`.trim(),
          ),
        ),
        more > 0 && h("span", { class: "vl-muted" }, `and ${more.toLocaleString("en")} more`),
      );
    },
  };
}
