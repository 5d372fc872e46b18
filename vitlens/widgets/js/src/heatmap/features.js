// The features that are active at a patch, by layer, most active first.

/** @import { Model } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { fill, h, show } from "../lib/dom.js";
import { listen, same, save } from "../lib/model.js";

/**
 * @param {Model} model
 * @param {AbortSignal} signal
 */
export function featureList(model, signal) {
  const heading = h("div", { class: "vl-title" });
  const body = h("div", { class: "vl-heat-layers" });
  const element = h("div", { class: "vl-heat-features", hidden: true }, heading, body);
  let request = 0;

  /**
   * Shows the features of a token of an image; null hides the list.
   * @param {{ token: number, image: number, name: string } | null} cell
   */
  async function load(cell) {
    const current = ++request;
    element.hidden = !cell || !model.get("layers")?.length;
    if (!cell || element.hidden) return;
    heading.textContent = `Features active at ${cell.name}`;
    try {
      const { token, image } = cell;
      const { value } = await ask(model, "features_at", { image, token });
      if (current !== request || signal.aborted) return;
      /** @type {{ layers: number[], features: Ranked[][], counts: number[] }} */
      const { layers, features, counts } = value;
      fill(body, layers.map((layer, i) => column(layer, features[i], counts[i])));
      markSelected();
      const selected = layers.indexOf(model.get("selected")?.[0]);
      const layer = body.children[selected < 0 ? layers.length - 1 : selected];
      if (layer instanceof HTMLElement) {
        body.scrollLeft = layer.offsetLeft + layer.offsetWidth / 2 - body.clientWidth / 2;
      }
    } catch (error) {
      if (current !== request || signal.aborted) return;
      fill(body, h("p", { class: "vl-muted" }, error instanceof Error ? error.message : String(error)));
    }
  }

  /** @typedef {[number, number, string]} Ranked feature, activation, label */

  /** @param {number} layer @param {Ranked[]} found @param {number} count */
  function column(layer, found, count) {
    const strongest = found[0]?.[1] || 1;
    return h(
      "div",
      { class: "vl-heat-layer" },
      h("div", { class: "vl-heat-layer-name" }, `Layer ${layer}`),
      found.map(([feature, activation, label]) =>
        h(
          "button",
          {
            class: "vl-heat-feature",
            dataset: { node: `${layer},${feature}` },
            title: `Feature ${feature}${label ? ` (${label})` : ""}: activation ${show(activation)}`,
            style: { "--vl-part": `${(100 * activation) / strongest}%` },
            onclick: () => save(model, { selected: [layer, feature] }),
          },
          h("span", { class: "vl-heat-feature-name" }, label || feature),
          h("span", { class: "vl-heat-number" }, digits(activation)),
        ),
      ),
      count > found.length &&
        h("div", { class: "vl-muted" }, `and ${count - found.length} more`),
      count === 0 && h("div", { class: "vl-muted" }, "none"),
    );
  }

  /** Three digits, zeros included, so that the numbers of a column align.
   * @param {number} x
   */
  const digits = (x) => (x >= 0.01 && x < 1000 ? x.toPrecision(3) : show(x));

  function markSelected() {
    const selected = model.get("selected");
    for (const button of body.querySelectorAll("button")) {
      const node = button.dataset.node?.split(",").map(Number);
      button.setAttribute("aria-pressed", String(same(node, selected)));
    }
  }
  listen(model, ["selected"], markSelected, signal);
  return { element, load };
}
