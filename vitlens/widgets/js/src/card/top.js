// Images of the atlas, each with its strongest patch enlarged.

import { h, percent, show } from "../lib/dom.js";
import { drawHeat } from "../lib/heat.js";

const SIDE = 96; // CSS pixels
const SHARP = 2;
const AROUND = 1.5; // patches on each side of the strongest that are enlarged with it

/**
 * @typedef {object} Item
 * @property {string} label
 * @property {number} activation its peak
 * @property {number} [quantile] share of the active images with a lower peak
 * @property {boolean} [lower] whether it is one of the lower quantiles
 * @property {string} [token] the prefix token of the peak, "" for a patch
 * @property {number} [patch] the patch of the peak, -1 for none
 * @property {string} [title]
 *
 * @typedef {object} TopImages
 * @property {boolean} available
 * @property {string} [why]
 * @property {Item[]} items
 *
 * @typedef {object} Gallery
 * @property {ImageBitmap | null} strip side by side
 * @property {Float32Array} heats activations by patch, [items, rows * columns]; empty until
 *   they are computed
 * @property {[number, number]} grid
 */

/**
 * @param {TopImages | undefined} top
 * @param {Gallery} gallery
 */
export function topImages(top, gallery) {
  if (!top?.available) return h("p", { class: "vl-muted vl-card-why" }, top?.why ?? "");
  const limit = Math.max(...top.items.map(({ activation }) => activation));
  /** @type {[HTMLElement[], HTMLElement[]]} */
  const lists = [[], []];
  for (const [index, item] of top.items.entries()) {
    lists[item.lower ? 1 : 0].push(itemOf(item, index, top.items.length, limit, gallery));
  }
  const [best, lower] = lists;
  const needsHeat = gallery.strip && !gallery.heats.length;
  return h(
    "div",
    { "aria-busy": `${Boolean(needsHeat)}` },
    best.length
      ? h("ul", { class: "vl-card-top", "aria-label": "Top images" }, best)
      : h("p", { class: "vl-muted" }, "Not active on any image of the atlas."),
    lower.length > 0 && [
      h("h4", { class: "vl-card-lower" }, "less active: a sample of the other active images"),
      h("ul", { class: "vl-card-top", "aria-label": "Images of lower quantiles" }, lower),
    ],
  );
}

/**
 * @param {Item} item @param {number} index @param {number} count @param {number} limit
 * @param {Gallery} gallery
 */
function itemOf(item, index, count, limit, { strip, heats, grid }) {
  const { label, activation, quantile, lower, token, title } = item;
  const size = grid[0] * grid[1];
  const values = heats.subarray(index * size, (index + 1) * size);
  const known = values.length > 0 && !Number.isNaN(values[0]);
  const heat = square();
  const near = square();
  const ground = { strip, index, count, pale: known };
  drawHeat(heat, ground, known ? { values, grid, limit } : null);
  const patch = item.patch ?? (known ? largest(values) : -1);
  if (strip && patch >= 0) enlarge(near, strip, index, count, patch, grid);
  heat.title = near.title = title ?? label;
  const text = `${label || "image"}, activation ${show(activation)}`;
  heat.setAttribute("role", "img");
  heat.setAttribute("aria-label", token ? `${text}, at ${token}` : text);
  return h(
    "li",
    {},
    h("div", { class: "vl-card-pair" }, heat, patch < 0 && token ? elsewhere(token) : near),
    h("span", { class: "vl-card-end vl-card-plain", title: title ?? label }, label),
    h(
      "span",
      { class: "vl-card-number", title: "its largest activation on the image" },
      show(activation),
      lower && quantile !== undefined && ` (over ${percent(Math.floor(quantile * 100) / 100)})`,
    ),
  );
}

/** Shown instead of the enlarged patch, where the peak is at a prefix token.
 * @param {string} token
 */
const elsewhere = (token) =>
  h("div", { class: "vl-card-elsewhere" }, h("span", {}, "strongest at"), h("strong", {}, token));

function square() {
  const canvas = h("canvas", { width: SIDE * SHARP, height: SIDE * SHARP });
  canvas.style.width = canvas.style.height = `${SIDE}px`;
  return canvas;
}

/** @param {Float32Array} values */
const largest = (values) => values.indexOf(values.reduce((most, x) => Math.max(most, x), -Infinity));

/**
 * The image around a patch, in its own colours.
 * @param {HTMLCanvasElement} canvas
 * @param {ImageBitmap} strip
 * @param {number} index
 * @param {number} count
 * @param {number} patch
 * @param {[number, number]} grid
 */
function enlarge(canvas, strip, index, count, patch, [rows, columns]) {
  const wide = strip.width / count;
  const [patchWidth, patchHeight] = [wide / columns, strip.height / rows];
  const width = Math.min(wide, (1 + 2 * AROUND) * patchWidth);
  const height = Math.min(strip.height, (1 + 2 * AROUND) * patchHeight);
  const centreX = ((patch % columns) + 0.5) * patchWidth;
  const centreY = (Math.floor(patch / columns) + 0.5) * patchHeight;
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

