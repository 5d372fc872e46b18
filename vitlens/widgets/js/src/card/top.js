// The images on which a feature is most active, each beside its strongest patch enlarged.

import { h, show } from "../lib/dom.js";
import { drawHeat } from "../lib/heat.js";

const SIDE = 96; // CSS pixels
const SHARP = 2;
const AROUND = 1.5; // patches on each side of the strongest that are enlarged with it

/**
 * @typedef {object} TopImages
 * @property {boolean} available
 * @property {string} [why]
 * @property {{ label: string, activation: number }[]} items
 */

/**
 * @param {TopImages | undefined} top
 * @param {ImageBitmap | null} strip their pictures, side by side
 * @param {Float32Array} heats activations by patch, [items, rows * columns]
 * @param {[number, number]} grid
 */
export function topImages(top, strip, heats, grid) {
  if (!top?.available) return h("p", { class: "vl-muted" }, top?.why ?? "");
  const size = grid[0] * grid[1];
  const limit = Math.max(...top.items.map(({ activation }) => activation));
  const items = top.items.map(({ label, activation }, index) => {
    const values = heats.subarray(index * size, (index + 1) * size);
    const heat = square();
    const near = square();
    const count = top.items.length;
    drawHeat(heat, { strip, index, count }, { values, grid, limit });
    if (strip) enlarge(near, strip, index, count, values, grid);
    return h(
      "li",
      {},
      h("div", { class: "vl-card-pair" }, heat, near),
      h("span", { title: label }, label),
      h("span", { class: "vl-card-number" }, show(activation)),
    );
  });
  return h("ul", { class: "vl-card-top", "aria-label": "Top images" }, items);
}

function square() {
  const canvas = h("canvas", { width: SIDE * SHARP, height: SIDE * SHARP });
  canvas.style.width = canvas.style.height = `${SIDE}px`;
  return canvas;
}

/**
 * The picture around its strongest patch, in its own colours.
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} strip
 * @param {number} index
 * @param {number} count
 * @param {Float32Array} values
 * @param {[number, number]} grid
 */
function enlarge(canvas, strip, index, count, values, [rows, columns]) {
  const best = values.indexOf(values.reduce((most, x) => Math.max(most, x), -Infinity));
  const wide = strip.width / count;
  const [patchWidth, patchHeight] = [wide / columns, strip.height / rows];
  const width = Math.min(wide, (1 + 2 * AROUND) * patchWidth);
  const height = Math.min(strip.height, (1 + 2 * AROUND) * patchHeight);
  const centreX = ((best % columns) + 0.5) * patchWidth;
  const centreY = (Math.floor(best / columns) + 0.5) * patchHeight;
  const x = Math.max(0, Math.min(wide - width, centreX - width / 2));
  const y = Math.max(0, Math.min(strip.height - height, centreY - height / 2));
  const g = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const scale = [canvas.width / width, canvas.height / height];
  g.drawImage(strip, index * wide + x, y, width, height, 0, 0, canvas.width, canvas.height);
  g.lineWidth = 3;
  g.strokeStyle = "#fff";
  g.strokeRect(
    (centreX - patchWidth / 2 - x) * scale[0],
    (centreY - patchHeight / 2 - y) * scale[1],
    patchWidth * scale[0],
    patchHeight * scale[1],
  );
}
