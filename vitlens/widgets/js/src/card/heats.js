// The activation and importance of a node per patch.

import { drawHeat, tokenColour } from "../lib/heat.js";
import { fill, h, show } from "../lib/dom.js";
import { legend } from "../lib/legend.js";
import { strongest } from "../lib/scale.js";

const PIXELS = 336;

/**
 * @typedef {object} ImageInfo
 * @property {ImageBitmap | null} strip
 * @property {number} count images in the strip
 * @property {[number, number]} grid
 * @property {string[]} prefixNames
 */

/** One heatmap with its name, colour bar and prefix tokens.
 * @param {string} text
 */
export function createHeat(text) {
  const canvas = h("canvas", { class: "vl-card-canvas", role: "img" });
  const prefix = h("div", { class: "vl-card-prefix" });
  const bar = legend({ limit: 1, signed: false, label: "" });
  const element = h(
    "figure",
    { class: "vl-card-heat" },
    text && h("figcaption", {}, text),
    canvas,
    prefix,
    bar.element,
  );

  /** @param {Float32Array} values [T], prefix tokens first @param {ImageInfo} image */
  function draw(values, { strip, count, grid, prefixNames }) {
    element.hidden = !values.length;
    if (!values.length) return;
    const [rows, columns] = grid;
    const longer = Math.max(rows, columns);
    canvas.width = Math.round((PIXELS * columns) / longer);
    canvas.height = Math.round((PIXELS * rows) / longer);
    const limit = strongest(values);
    drawHeat(canvas, { strip, count }, { values, offset: prefixNames.length, grid, limit });
    canvas.setAttribute("aria-label", `${text || "Heat"}: ${summary(values, grid, prefixNames)}`);
    bar.update({ limit, signed: values.some((x) => x < 0), label: "" });
    fill(
      prefix,
      prefixNames.map((name, i) =>
        h(
          "div",
          { class: "vl-card-token", title: `${name}: ${show(values[i])}` },
          h("span", {
            class: "vl-card-square",
            style: { "background-image": flat(tokenColour(values[i], { limit })) },
          }),
          name,
        ),
      ),
    );
  }

  return { element, draw };
}

/** A colour as a CSS image, over the background of images in any theme.
 * @param {string} colour
 */
const flat = (colour) => `linear-gradient(${colour}, ${colour})`;

/** @param {Float32Array} values @param {[number, number]} grid @param {string[]} prefixNames */
function summary(values, [, columns], prefixNames) {
  let most = 0;
  for (let i = 1; i < values.length; i++) {
    if (Math.abs(values[i]) > Math.abs(values[most])) most = i;
  }
  const patch = most - prefixNames.length;
  const where =
    patch < 0
      ? prefixNames[most]
      : `row ${Math.floor(patch / columns) + 1}, column ${(patch % columns) + 1}`;
  return `strongest at ${where}, ${show(values[most])}`;
}
