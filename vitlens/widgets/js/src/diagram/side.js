// The image, with the heat of the current node.

/** @import { Ground } from "../lib/heat.js" */
/** @import { Data } from "./data.js" */
/** @import { Diagram } from "./diagram.js" */
import { fill, h, isolated, percent, show } from "../lib/dom.js";
import { drawHeat } from "../lib/heat.js";
import { ERROR, featureName, relativeHeat, shareText } from "./data.js";
import { createMeasured } from "./measured.js";

const KIND = "The score that is most above its 99% chance level, on the images of the atlas";
const SIDE = 264; // pixels of the canvas' longer side

/** @param {Diagram} diagram */
export function createSide(diagram) {
  const edges = createMeasured(diagram);
  const canvas = h("canvas", { class: "vl-side-image", role: "img" });
  const text = h("div", { class: "vl-side-text" });
  /** @type {unknown[]} */
  let last = [];
  return {
    element: h("div", { class: "vl-diagram-side" }, canvas, text),
    /**
     * @param {Data} data @param {Ground} ground
     * @param {number | undefined} id a candidate, or the target, or none
     * @param {string | undefined} label
     */
    update(data, ground, id, label) {
      const measured = edges.table(data, id);
      const state = [data, ground.strip, ground.count, id, label, measured];
      if (state.every((one, i) => one === last[i])) return;
      last = state;
      const [rows, columns] = data.grid;
      const longer = Math.max(rows, columns);
      const width = Math.round((SIDE * columns) / longer);
      const height = Math.round((SIDE * rows) / longer);
      if (canvas.width !== width) canvas.width = width;
      if (canvas.height !== height) canvas.height = height;
      const node = id !== undefined && id < data.total;
      const [predicted, probability] = data.prediction;
      if (!node) {
        drawHeat(canvas, { ...ground, pale: false }, null);
        canvas.setAttribute("aria-label", "The image");
        fill(
          text,
          h("div", { class: "vl-side-name" }, "Image"),
          h("div", {}, `predicted: ${isolated(predicted)} (${percent(probability)})`),
          measured,
        );
        return;
      }
      const { values, limit } = relativeHeat(data, id);
      const prefix = data.prefixNames.length;
      drawHeat(canvas, ground, { values, offset: prefix, grid: data.grid, limit });
      const name = data.features[id] === ERROR ? "error node" : `feature ${featureName(data.features[id])}`;
      canvas.setAttribute("aria-label", `Importance of this ${name} on the image`);
      fill(
        text,
        h("div", { class: "vl-side-name" }, label ?? `Layer ${data.layers[id]}, ${name}`),
        label && h("div", {}, `layer ${data.layers[id]}, ${name}`),
        h("div", {}, `importance ${show(data.importances[id])}`),
        h("div", {}, `${shareText(data.shares[id])} of its layer`),
        data.kinds[id] && h("div", { class: "vl-side-kind", title: KIND }, data.kinds[id]),
        prefix > 0 && h("div", {}, prefixText(data, values)),
        measured,
      );
    },
  };
}

/** The share of a node's importance on the prefix tokens.
 * @param {Data} data @param {Float32Array} values
 */
function prefixText({ prefixNames }, values) {
  let total = 0;
  for (const value of values) total += Math.abs(value);
  let before = 0;
  for (let i = 0; i < prefixNames.length; i++) before += Math.abs(values[i]);
  const names = prefixNames.length > 1 ? `${prefixNames[0]} and registers` : prefixNames[0];
  return `${shareText(total > 0 ? before / total : 0)} on ${names}`;
}
