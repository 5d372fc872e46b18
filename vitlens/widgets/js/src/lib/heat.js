// A heatmap of patches over an image, on a canvas.

/** @import { ScaleName } from "./scale" */
import { bytesOf } from "./model.js";
import { css, offsetOf, table } from "./scale.js";

export const EMPTY = "#ebebeb"; // the background where there is no image
const PALE = 0.5; // remaining contrast of a pale image
const FINE = 12; // pixels per patch for smooth heat, before the browser's smoothing

/**
 * A strip of images, decoded; null when there is none.
 * @param {DataView | null | undefined} view
 * @returns {Promise<ImageBitmap | null>}
 */
export async function loadStrip(view) {
  const bytes = bytesOf(view);
  if (!bytes.length) return null;
  return createImageBitmap(new Blob([/** @type {any} */ (bytes)]));
}

/**
 * @typedef {object} Heat
 * @property {ArrayLike<number>} values by patch, row by row, from `offset` on
 * @property {number} [offset] such as the number of prefix tokens
 * @property {[number, number]} grid rows and columns
 * @property {number} limit the value of the strongest colour
 * @property {number} [low] the value of the weakest colour, also used for lower values; without
 *   it that is 0, and lower values have separate colours
 * @property {ScaleName} [scale]
 * @property {number} [opacity] of the strongest colour, 0 to 1
 * @property {boolean} [smooth]
 */

/**
 * @typedef {object} Ground
 * @property {ImageBitmap | null} strip
 * @property {number} [index] index of the image in the strip
 * @property {number} [count] images in the strip
 * @property {boolean} [pale] grey, so that only the heat has a colour
 */

/**
 * Draws an image and its heat over the whole canvas.
 * @param {HTMLCanvasElement} canvas
 * @param {Ground} ground
 * @param {Heat | null} heat
 */
export function drawHeat(canvas, ground, heat) {
  const g = context(canvas);
  drawGround(g, ground);
  if (!heat) return;
  const image = heatImage(heat);
  g.save();
  g.imageSmoothingEnabled = Boolean(heat.smooth);
  g.globalAlpha = heat.opacity ?? 0.8;
  g.drawImage(image, 0, 0, canvas.width, canvas.height);
  g.restore();
}

/**
 * The image alone.
 * @param {CanvasRenderingContext2D} g
 * @param {Ground} ground
 */
export function drawGround(g, { strip, index = 0, count = 1, pale = true }) {
  const { width, height } = g.canvas;
  g.save();
  g.fillStyle = strip && pale ? "#fff" : EMPTY;
  g.fillRect(0, 0, width, height);
  if (strip) {
    const wide = strip.width / count;
    if (pale) {
      g.filter = "grayscale(1)";
      g.globalAlpha = PALE;
    }
    g.imageSmoothingQuality = "high";
    g.drawImage(strip, index * wide, 0, wide, strip.height, 0, 0, width, height);
  }
  g.restore();
}

/** @param {Heat} heat */
function heatImage({ values, offset = 0, grid: [rows, columns], limit, low, scale, smooth }) {
  const fine = smooth ? FINE : 1;
  const canvas = document.createElement("canvas");
  canvas.width = columns * fine;
  canvas.height = rows * fine;
  const g = context(canvas);
  const image = g.createImageData(canvas.width, canvas.height);
  const colours = table(scale);
  const strength = strengthOf({ limit, low });
  let out = 0;
  for (let y = 0; y < canvas.height; y++) {
    const [top, bottom, down] = between(y, fine, rows);
    for (let x = 0; x < canvas.width; x++) {
      const [left, right, across] = between(x, fine, columns);
      const at = (/** @type {number} */ r, /** @type {number} */ c) =>
        values[offset + r * columns + c];
      const above = at(top, left) * (1 - across) + at(top, right) * across;
      const below = at(bottom, left) * (1 - across) + at(bottom, right) * across;
      const i = offsetOf(strength(above * (1 - down) + below * down));
      image.data.set(colours.subarray(i, i + 4), out);
      out += 4;
    }
  }
  g.putImageData(image, 0, 0);
  return canvas;
}

/**
 * Strength of a value's colour, from -1 to 1 or, with `low`, from 0 to 1.
 * @param {Pick<Heat, "limit" | "low">} heat @returns {(value: number) => number}
 */
function strengthOf({ limit, low }) {
  const weakest = low ?? 0;
  const factor = limit > weakest ? 1 / (limit - weakest) : 0;
  const least = low === undefined ? -1 : 0;
  return (value) => Math.max(least, (value - weakest) * factor);
}

/**
 * The two patches between whose centres a fine pixel lies, and the fraction between them.
 * @param {number} pixel @param {number} fine @param {number} count
 * @returns {[number, number, number]}
 */
function between(pixel, fine, count) {
  const at = Math.max(0, Math.min(count - 1, (pixel + 0.5) / fine - 0.5));
  const low = Math.floor(at);
  return [low, Math.min(low + 1, count - 1), at - low];
}

/**
 * A small canvas with heat on an image, for nodes and rows of tables.
 * @param {Ground} ground @param {Heat | null} heat @param {number} [size] of its longer side, CSS px
 */
export function thumbnail(ground, heat, size = 48) {
  const canvas = document.createElement("canvas");
  const [rows, columns] = heat?.grid ?? [1, 1];
  const ratio = Math.min(2, globalThis.devicePixelRatio || 1);
  const longer = Math.max(rows, columns);
  canvas.width = Math.round((size * ratio * columns) / longer);
  canvas.height = Math.round((size * ratio * rows) / longer);
  canvas.style.width = `${canvas.width / ratio}px`;
  canvas.style.height = `${canvas.height / ratio}px`;
  drawHeat(canvas, ground, heat);
  return canvas;
}

/**
 * The colour of one token's square, on a plain background.
 * @param {number} value @param {Pick<Heat, "limit" | "low" | "scale" | "opacity">} heat
 */
export const tokenColour = (value, { limit, low, scale, opacity }) =>
  css(strengthOf({ limit, low })(value), { scale, opacity });

/** @param {HTMLCanvasElement} canvas */
function context(canvas) {
  return /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
}
