// One image with its heat: a canvas, an overlay of selected patches, and the prefix tokens.

/** @import { Patch } from "../lib/types" */
/** @import { Ground, Heat } from "../lib/heat" */
/** @import { Layout } from "./cells" */
import { fill, h, s } from "../lib/dom.js";
import { drawHeat, tokenColour } from "../lib/heat.js";

const KEYS = "Arrow keys move between patches. Enter selects. Ctrl-Enter adds. Escape clears the selection.";

/**
 * @typedef {object} ViewState
 * @property {Layout} layout
 * @property {Ground} ground
 * @property {Heat & { limit: number }} heat all tokens' values; `offset` skips those before patches
 * @property {string} title
 * @property {boolean} lines
 * @property {number} ratio height of the image over its width
 */

/**
 * @param {{
 *   hover: (cell: Patch | null) => void,
 *   choose: (cell: Patch, add: boolean) => void,
 *   key: (event: KeyboardEvent) => void,
 * }} on
 */
export function heatView(on) {
  const canvas = h("canvas", { class: "vl-heat-canvas" });
  const overlay = s("svg", { class: "vl-heat-overlay", preserveAspectRatio: "none" });
  const image = h("div", { class: "vl-heat-image" }, canvas, overlay);
  const prefix = h("div", { class: "vl-heat-prefix" });
  const stage = h(
    "div",
    { class: "vl-heat-stage", tabindex: 0, role: "application", "aria-roledescription": "heatmap" },
    prefix,
    image,
  );
  const caption = h("div", { class: "vl-heat-caption" });
  const element = h("div", { class: "vl-heat-view" }, caption, stage);
  /** @type {ViewState | null} */
  let now = null;

  /** @param {PointerEvent | MouseEvent} event @returns {Patch | null} */
  const cellAt = (event) => {
    const square = /** @type {Element} */ (event.target).closest(".vl-heat-token");
    if (square) return [-1, Number(/** @type {HTMLElement} */ (square).dataset.token)];
    if (!now || !image.contains(/** @type {Node} */ (event.target))) return null;
    const box = image.getBoundingClientRect();
    const [rows, columns] = now.layout.grid;
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    return row < 0 || column < 0 || row >= rows || column >= columns ? null : [row, column];
  };
  stage.addEventListener("pointermove", (event) => on.hover(cellAt(event)));
  stage.addEventListener("pointerleave", () => on.hover(null));
  stage.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell) on.choose(cell, event.ctrlKey || event.metaKey || event.shiftKey);
  });
  stage.addEventListener("keydown", on.key);

  /** @param {ViewState} state */
  function draw(state) {
    now = state;
    const [rows, columns] = state.layout.grid;
    image.style.aspectRatio = String(1 / state.ratio);
    const sharp = Math.min(2, devicePixelRatio || 1);
    const wide = image.clientWidth || 320;
    canvas.width = Math.round(wide * sharp);
    canvas.height = Math.round(wide * sharp * state.ratio);
    drawHeat(canvas, state.ground, state.heat);
    overlay.setAttribute("viewBox", `0 0 ${columns} ${rows}`);
    caption.textContent = caption.title = state.title;
    caption.hidden = !state.title;
    stage.setAttribute("aria-label", `${state.title || "Heatmap"}. ${KEYS}`);
    prefix.hidden = !state.layout.prefix.length;
    fill(prefix, state.layout.prefix.map((name, i) => token(name, i, state)));
  }

  /** @param {Patch | null} cursor @param {Patch[]} chosen */
  function mark(cursor, chosen) {
    if (!now) return;
    const [rows, columns] = now.layout.grid;
    const lines = now.lines ? gridLines(rows, columns) : [];
    const boxes = chosen.filter(([row]) => row >= 0).flatMap((cell) => box(cell, "vl-heat-chosen"));
    const over = cursor && cursor[0] >= 0 ? box(cursor, "vl-heat-cursor") : [];
    fill(overlay, lines, over, boxes);
    for (const square of prefix.children) {
      const i = Number(/** @type {HTMLElement} */ (square).dataset.token);
      const is = (/** @type {Patch} */ [row, column]) => row < 0 && column === i;
      square.classList.toggle("vl-heat-chosen", chosen.some(is));
      square.classList.toggle("vl-heat-cursor", Boolean(cursor && is(cursor)));
    }
  }

  return { element, stage, draw, mark };
}

/** @param {string} name @param {number} i @param {ViewState} state */
function token(name, i, { heat }) {
  return h(
    "div",
    { class: "vl-heat-token", dataset: { token: i } },
    h("span", {
      class: "vl-heat-square",
      style: { "--vl-heat": tokenColour(heat.values[i] ?? 0, heat) },
    }),
    h("span", { class: "vl-heat-name" }, name),
  );
}

/** Two lines, dark and light, are visible on any background.
 * @param {Patch} cell @param {string} kind
 */
const box = ([row, column], kind) =>
  ["vl-heat-dark", "vl-heat-light"].map((tone) =>
    s("rect", { x: column, y: row, width: 1, height: 1, class: `${kind} ${tone}` }),
  );

/** @param {number} rows @param {number} columns */
function gridLines(rows, columns) {
  const across = Array.from({ length: rows - 1 }, (_, i) => `M0 ${i + 1}H${columns}`);
  const down = Array.from({ length: columns - 1 }, (_, i) => `M${i + 1} 0V${rows}`);
  const d = [...across, ...down].join("");
  return ["vl-heat-dark", "vl-heat-light"].map((tone) =>
    s("path", { d, class: `vl-heat-lines ${tone}` }),
  );
}
