// The head of the table, and its rows.

/** @import { Sort } from "./order.js" */
import { h, show } from "../lib/dom.js";
import { tenths } from "../lib/share.js";

/** @type {{ by: Sort, words: string, hint: string }[]} */
const HEAD = [
  { by: "feature", words: "feature", hint: "the feature's number" },
  { by: "label", words: "name", hint: "names you gave" },
  { by: "importance", words: "importance", hint: "share of the layer's positive importance here" },
  { by: "max_activation", words: "max", hint: "largest activation on this image" },
  { by: "mean_activation", words: "mean", hint: "mean activation where it is active" },
  { by: "active_tokens", words: "tokens", hint: "tokens of this image on which it is active" },
];

/** @param {(by: Sort) => void} choose */
export function createHead(choose) {
  const cells = HEAD.map(({ by, words, hint }) =>
    h(
      "div",
      { class: `vl-browser-cell vl-browser-${by}`, role: "columnheader" },
      h("button", { type: "button", title: hint, onclick: () => choose(by) }, words, h("span")),
    ),
  );
  const element = h(
    "div",
    { role: "rowgroup" },
    h("div", { class: "vl-browser-head", role: "row", "aria-rowindex": 1 }, cells),
  );
  return {
    element,
    /** @param {Sort} by @param {boolean} descending */
    update(by, descending) {
      for (const [i, cell] of cells.entries()) {
        const sorted = HEAD[i].by === by;
        const way = descending ? "descending" : "ascending";
        cell.setAttribute("aria-sort", sorted ? way : "none");
        const mark = /** @type {HTMLElement} */ (cell.querySelector("span"));
        mark.textContent = sorted ? (descending ? " ▾" : " ▴") : "";
      }
    },
  };
}

/** An empty row; `fillRow` writes into it again and again. */
export function createRow() {
  const bar = h("span", { class: "vl-browser-bar", role: "presentation" });
  const cells = HEAD.map(({ by }) =>
    h(
      "div",
      { class: `vl-browser-cell vl-browser-${by}`, role: "gridcell" },
      by === "importance" && bar,
      h("span", { class: "vl-browser-text" }),
    ),
  );
  return h("div", { class: "vl-browser-row", role: "row", hidden: true }, cells);
}

/**
 * @typedef {object} RowState
 * @property {number} feature
 * @property {string} label
 * @property {number[]} values in the order of `COLUMNS`
 * @property {number} positive the layer's positive importance
 * @property {number} widest the importance of the longest bar
 */

/** @param {HTMLElement} row @param {RowState} state */
export function fillRow(row, { feature, label, values, positive, widest }) {
  const [importance, peak, mean, tokens] = values;
  const share = positive > 0 ? tenths(importance / positive) : show(importance);
  const words = [String(feature), label, share, show(peak), show(mean), String(tokens)];
  for (let i = 0; i < words.length; i++) {
    const text = /** @type {HTMLElement} */ (row.children[i].lastElementChild);
    if (text.textContent !== words[i]) text.textContent = words[i];
  }
  row.children[1].setAttribute("title", label);
  const bar = /** @type {HTMLElement} */ (row.children[2].firstElementChild);
  bar.style.transform = `scaleX(${(importance / widest).toFixed(3)})`;
  bar.classList.toggle("vl-negative", importance < 0);
}
