// The legend: line, method and areas; a click hides or shows a method.

import { decimals, h, s as svg } from "../lib/dom.js";
import { MEANINGS } from "./styles.js";

/** @typedef {import("./data.js").CurveData} CurveData */
/** @typedef {import("./data.js").Direction} Direction */
/** @typedef {import("./styles.js").LineStyle} LineStyle */

/** @type {Record<Direction, string>} */
export const ARROWS = { insertion: "↑", deletion: "↓" };

/**
 * @param {CurveData} data
 * @param {Map<string, LineStyle>} styles
 * @param {Direction[]} directions
 * @param {"log" | "linear"} axis
 * @param {(method: string) => boolean} isShown
 * @param {(method: string) => void} toggle
 * @returns {HTMLElement[]} one button per method
 */
export function legendButtons(data, styles, directions, axis, isShown, toggle) {
  return data.info.methods.map((method) => {
    const areas = directions.flatMap((direction) => {
      const area = data.info.areas[axis]?.[direction]?.[method];
      return typeof area === "number" ? `${ARROWS[direction]} ${decimals(area, 3)}` : [];
    });
    const meaning = MEANINGS[method] ?? method;
    const share = axis === "log" ? "logarithmic" : "linear";
    const button = h("button", {
      type: "button",
      class: "vl-button vl-curves-key",
      "aria-pressed": `${isShown(method)}`,
      "data-method": method,
      title: `${meaning}; areas under the curves, share ${share}`,
    });
    button.append(
      sample(styles.get(method)),
      h("span", {}, method),
      h("span", { class: "vl-curves-area" }, areas.join("  ")),
    );
    button.addEventListener("click", () => toggle(method));
    return button;
  });
}

/** The meaning of the numbers next to the names. @param {Direction[]} directions */
export const areasText = (directions) =>
  `areas under the curves: ${directions.map((one) => `${ARROWS[one]} ${one}`).join(", ")}`;

/** @param {LineStyle | undefined} style */
export function sample(style) {
  const colour = `vl-curve-${style?.name ?? "other-0"}`;
  const element = svg("svg", {
    width: 34, height: 12, viewBox: "-17 -6 34 12", "aria-hidden": "true",
  });
  element.append(
    svg("path", {
      class: `vl-curves-line ${colour}`, d: "M-16,0H16", "stroke-dasharray": style?.dash ?? "",
    }),
    svg("path", { class: `vl-curves-marker ${colour}`, d: style?.marker ?? "" }),
  );
  return element;
}
