// The position of the unit square of the map on the stage, in CSS pixels.

const MARGIN = 14;
const LEAST = 0.5; // of the scale at which all fits
const MOST = 80;

/** @typedef {{ scale: number, x: number, y: number }} View */

/** @param {number} width @param {number} height @returns {View} */
export function fitted(width, height) {
  const scale = Math.max(40, Math.min(width, height) - 2 * MARGIN);
  return { scale, x: (width - scale) / 2, y: (height - scale) / 2 };
}

/**
 * Zooms about a point of the stage.
 * @param {View} view @param {number} factor @param {number} x @param {number} y
 * @param {number} whole the scale at which all fits
 * @returns {View}
 */
export function zoomed(view, factor, x, y, whole) {
  const scale = Math.min(MOST * whole, Math.max(LEAST * whole, view.scale * factor));
  const by = scale / view.scale;
  return { scale, x: x - (x - view.x) * by, y: y - (y - view.y) * by };
}

/**
 * The view moved as little as needed to show a point.
 * @param {View} view @param {number} px @param {number} py of the map
 * @param {number} width @param {number} height
 * @returns {View}
 */
export function revealing(view, px, py, width, height) {
  const [x, y] = [view.x + px * view.scale, view.y + py * view.scale];
  const by = (/** @type {number} */ at, /** @type {number} */ room) =>
    at < MARGIN ? MARGIN - at : at > room - MARGIN ? room - MARGIN - at : 0;
  return { ...view, x: view.x + by(x, width), y: view.y + by(y, height) };
}
