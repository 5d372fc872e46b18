// Many points on a canvas, pixel by pixel: tens of thousands within one frame.

/** @import { Data } from "./data.js" */
/** @import { Rgb } from "./colours.js" */
/** @import { View } from "./view.js" */
import { faded, pack } from "./colours.js";

const FAINT = 0.15; // pixels with less coverage are not drawn
const FADED = 0.22; // share of the colour of points that are not chosen

/**
 * @typedef {object} Look
 * @property {Uint32Array} colours by point
 * @property {Uint8Array} shown 1 for points that are drawn
 * @property {Uint8Array | null} chosen 1 for highlighted points; null without any
 * @property {Rgb} ground
 * @property {number} radius in pixels of the canvas
 */

/** @param {HTMLCanvasElement} canvas */
export function createPainter(canvas) {
  const g = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { alpha: false }));
  /** @type {ImageData | null} */
  let image = null;
  let pixels = new Uint32Array(0);

  /**
   * @param {Data} data @param {View} view in pixels of the canvas @param {Look} look
   */
  return function paint(data, view, { colours, shown, chosen, ground, radius }) {
    const { width, height } = canvas;
    if (!width || !height) return;
    if (image?.width !== width || image.height !== height) {
      image = g.createImageData(width, height);
      pixels = new Uint32Array(image.data.buffer);
    }
    pixels.fill(pack(ground));
    const disc = stamp(radius);
    const edge = Math.ceil(radius);
    const { order, drawnX, drawnY, n } = data;
    for (const stands of chosen ? [0, 1] : [1]) {
      const ink = stands ? colours : dimmed(colours, ground);
      for (let k = 0; k < n; k++) {
        const x = Math.round(view.x + drawnX[k] * view.scale);
        const y = Math.round(view.y + drawnY[k] * view.scale);
        if (x < edge || y < edge || x >= width - edge || y >= height - edge) continue;
        const i = order[k];
        if (!shown[i] || (chosen && chosen[i] !== stands)) continue;
        put(pixels, width, x, y, ink[i], disc);
      }
    }
    g.putImageData(image, 0, 0);
  };
}

/** Colours mixed with the background.
 * @param {Uint32Array} colours @param {Rgb} ground
 */
function dimmed(colours, ground) {
  /** @type {Map<number, number>} */
  const known = new Map();
  return colours.map((colour) => {
    const found = known.get(colour) ?? faded(colour, ground, FADED);
    known.set(colour, found);
    return found;
  });
}

/**
 * @typedef {object} Stamp
 * @property {Int32Array} full dx and dy of pixels that a disc covers, in turn
 * @property {Int32Array} rim dx, dy and coverage (0 to 256) of those it covers in part
 */

/** @type {Map<number, Stamp>} */
const stamps = new Map();

/** @param {number} radius @returns {Stamp} */
function stamp(radius) {
  const known = stamps.get(radius);
  if (known) return known;
  const full = [];
  const rim = [];
  const reach = Math.ceil(radius);
  for (let dy = -reach; dy <= reach; dy++) {
    for (let dx = -reach; dx <= reach; dx++) {
      const cover = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(dx, dy)));
      if (cover >= 1) full.push(dx, dy);
      else if (cover > FAINT) rim.push(dx, dy, Math.round(256 * cover));
    }
  }
  const made = { full: Int32Array.from(full), rim: Int32Array.from(rim) };
  stamps.set(radius, made);
  return made;
}

/**
 * @param {Uint32Array} pixels @param {number} width @param {number} x @param {number} y
 * @param {number} colour @param {Stamp} disc
 */
function put(pixels, width, x, y, colour, { full, rim }) {
  const centre = y * width + x;
  for (let k = 0; k < full.length; k += 2) pixels[centre + full[k + 1] * width + full[k]] = colour;
  for (let k = 0; k < rim.length; k += 3) {
    const at = centre + rim[k + 1] * width + rim[k];
    const under = pixels[at];
    const cover = rim[k + 2];
    const rest = 256 - cover;
    const redBlue = ((under & 0xff00ff) * rest + (colour & 0xff00ff) * cover) >>> 8;
    const green = ((under & 0xff00) * rest + (colour & 0xff00) * cover) >>> 8;
    pixels[at] = (0xff000000 | (redBlue & 0xff00ff) | (green & 0xff00)) >>> 0;
  }
}
