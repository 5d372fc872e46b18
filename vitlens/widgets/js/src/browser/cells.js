// The header of the table, and its rows.

/** @import { Column } from "./columns.js" */
/** @import { Sort } from "./order.js" */
import { fill, fixed, h, plain } from "../lib/dom.js";
import { tenths } from "../lib/share.js";
import { format, PROPOSED } from "./columns.js";

/** @param {(by: Sort) => void} choose */
export function createHead(choose) {
  /** @type {Column[]} */
  let columns = [];
  /** @type {HTMLElement[]} */
  let cells = [];
  const row = h("div", { class: "vl-browser-head", role: "row", "aria-rowindex": 1 });
  const element = h("div", { role: "rowgroup" }, row);

  /** @param {Column} column @param {number | undefined} chance */
  function cell({ by, header, hint }, chance) {
    const level = chance === undefined ? "" : `; chance level ${fixed(chance)} (99%); values not above it are pale`;
    // The name in Python: of `sort`, `at_least` and the scores of the atlas.
    const title = by === PROPOSED.by ? hint : `${by}: ${hint}${level}`;
    const content =
      by === PROPOSED.by
        ? h("span", { class: "vl-browser-title", title }, header)
        : h("button", { type: "button", title, onclick: () => choose(by) }, header, h("span"));
    return h("div", { class: `vl-browser-cell vl-browser-${by}`, role: "columnheader" }, content);
  }

  return {
    element,
    row,
    /** @param {Column[]} next @param {Record<string, number>} chance by column */
    columns(next, chance) {
      columns = next;
      cells = columns.map((column) => cell(column, chance[column.by]));
      fill(row, cells);
    },
    /** @param {Sort} by @param {boolean} descending */
    update(by, descending) {
      for (const [i, cell] of cells.entries()) {
        const sorted = columns[i].by === by;
        const direction = descending ? "descending" : "ascending";
        cell.setAttribute("aria-sort", sorted ? direction : "none");
        const arrow = cell.querySelector("button > span");
        if (arrow) arrow.textContent = sorted ? (descending ? " ▾" : " ▴") : "";
      }
    },
  };
}

/** An empty row, which `fillRow` reuses.
 * @param {Column[]} columns
 */
export function createRow(columns) {
  const cells = columns.map(({ by }) =>
    h(
      "div",
      { class: `vl-browser-cell vl-browser-${by}`, role: "gridcell" },
      by === "importance" && h("span", { class: "vl-browser-bar", role: "presentation" }),
      h("span", { class: "vl-browser-text" }),
    ),
  );
  return h("div", { class: "vl-browser-row", role: "row", hidden: true }, cells);
}

/**
 * @typedef {object} RowState
 * @property {number} feature
 * @property {string} label
 * @property {string} text proposed names
 * @property {(by: string) => number} value
 * @property {Record<string, number>} chance by column
 * @property {number} positive the layer's positive importance
 * @property {number} widest the importance of the longest bar
 */

/** @param {HTMLElement} row @param {Column[]} columns @param {RowState} state */
export function fillRow(row, columns, { feature, label, text, value, chance, positive, widest }) {
  for (const [i, column] of columns.entries()) {
    const cell = /** @type {HTMLElement} */ (row.children[i]);
    const { by } = column;
    if (by === "feature") put(cell, String(feature));
    else if (by === "label" || by === PROPOSED.by) {
      const name = by === "label" ? label : text;
      put(cell, name);
      cell.title = name;
    } else if (by === "importance") {
      const importance = value(by);
      put(cell, positive > 0 ? tenths(importance / positive) : plain(importance));
      const bar = /** @type {HTMLElement} */ (cell.firstElementChild);
      bar.style.transform = `scaleX(${(importance / widest).toFixed(3)})`;
      bar.classList.toggle("vl-negative", importance < 0);
    } else {
      put(cell, format(column, value(by)));
      cell.classList.toggle("vl-chance", !(value(by) > (chance[by] ?? -Infinity)));
    }
  }
}

/** @param {HTMLElement} cell @param {string} content */
function put(cell, content) {
  const text = /** @type {HTMLElement} */ (cell.lastElementChild);
  if (text.textContent !== content) text.textContent = content;
}
