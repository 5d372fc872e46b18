// Values of all methods at one share of features, as a table.

import { decimals, h, percent } from "../lib/dom.js";
import { ARROWS, sample } from "./legend.js";
import { valueAt } from "./scale.js";

/** @typedef {import("./data.js").Direction} Direction */
/** @typedef {import("./panel.js").PanelState} PanelState */

/**
 * @param {PanelState} state
 * @param {number} share
 * @param {Direction[]} directions
 * @returns {HTMLElement}
 */
export function valueTable(state, share, directions) {
  const { data, scale, styles, isShown } = state;
  const head = h("tr", {}, h("th", { scope: "col" }, "method"));
  for (const direction of directions) {
    head.append(h("th", { scope: "col" }, `${direction} ${ARROWS[direction]}`));
  }
  const body = h("tbody", {});
  for (const method of data.info.methods.filter(isShown)) {
    const name = h("th", { scope: "row" });
    name.append(sample(styles.get(method)), ` ${method}`);
    const row = h("tr", {}, name);
    for (const direction of directions) {
      const { mean, low, high } = data.curve(direction, method);
      const [middle, lower, upper] = [mean, low, high].map((v) =>
        valueAt(data.info.q, v, share, scale),
      );
      const sign = middle.measured ? "" : "≈ ";
      const range = Number.isNaN(lower.value)
        ? ""
        : ` [${number(lower.value)}, ${number(upper.value)}]`;
      row.append(h("td", {}, `${sign}${number(middle.value)}${range}`));
    }
    body.append(row);
  }
  return h("table", { class: "vl-curves-table" }, h("thead", {}, head), body);
}

/**
 * @param {PanelState} state
 * @param {number} count nodes per layer
 * @returns {string}
 */
export function countText(state, count) {
  const share = count / state.data.info.dictionary_size;
  const nodes = count === 1 ? "node" : "nodes";
  return `${count} ${nodes} per layer, ${percent(share)} of the largest dictionary`;
}

/**
 * @param {PanelState} state
 * @param {number} share
 * @returns {string} the values as text for screen readers
 */
export function valuesText(state, share) {
  const { data, directions, scale, isShown } = state;
  return data.info.methods
    .filter(isShown)
    .map((method) => {
      const values = directions.map((direction) => {
        const { value } = valueAt(data.info.q, data.curve(direction, method).mean, share, scale);
        return `${direction} ${number(value)}`;
      });
      return `${method}: ${values.join(", ")}`;
    })
    .join("; ");
}

/** @param {number} value */
const number = (value) => decimals(value, 3);
