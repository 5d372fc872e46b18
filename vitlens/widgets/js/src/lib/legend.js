// A colour bar with its numbers.

/** @import { ScaleName } from "./scale" */
import { fill, h, show } from "./dom.js";
import { css } from "./scale.js";

const STEPS = 33;

/**
 * @typedef {object} LegendState
 * @property {number} limit the value of the strongest colour
 * @property {number} [low] the value of the weakest colour, by default 0, for a bar without a sign
 * @property {boolean} signed whether the bar also has a side below 0
 * @property {string} label name of the values
 * @property {ScaleName} [scale]
 * @property {number} [opacity]
 */

/**
 * A horizontal colour bar; `update` redraws it.
 * @param {LegendState} state
 */
export function legend(state) {
  const element = h("div", { class: "vl-legend", role: "img" });
  /** @param {LegendState} state */
  const update = ({ limit, low = 0, signed, label, scale, opacity }) => {
    const ends = signed ? [-limit, 0, limit] : [low, limit];
    const stops = Array.from({ length: STEPS }, (_, i) => {
      const at = i / (STEPS - 1);
      return css(signed ? 2 * at - 1 : at, { scale, opacity });
    });
    element.setAttribute("aria-label", `Colours: ${label}, from ${show(ends[0])} to ${show(limit)}`);
    fill(
      element,
      h("span", { class: "vl-legend-label" }, label),
      h(
        "span",
        { class: "vl-legend-body" },
        h("span", {
          class: "vl-legend-bar",
          style: { "background-image": `linear-gradient(to right, ${stops.join(",")})` },
        }),
        h("span", { class: "vl-legend-ends" }, ...ends.map((x) => h("span", {}, show(x)))),
      ),
    );
  };
  update(state);
  return { element, update };
}
