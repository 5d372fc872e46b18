// The picture, with the heat of the node in hand.

/** @import { Ground } from "../lib/heat.js" */
/** @import { Data } from "./data.js" */
/** @import { Diagram } from "./diagram.js" */
import { apart, fill, h, percent, show } from "../lib/dom.js";
import { drawHeat } from "../lib/heat.js";
import { ERROR, featureName, relativeHeat, shareWords } from "./data.js";
import { createMeasured } from "./measured.js";

const KIND = "The score most above the 99% level of chance, over the atlas’s images";
const SIDE = 264; // pixels of the canvas' longer side

/** @param {Diagram} diagram */
export function createSide(diagram) {
  const edges = createMeasured(diagram);
  const canvas = h("canvas", { class: "vl-side-picture", role: "img" });
  const words = h("div", { class: "vl-side-words" });
  /** @type {unknown[]} */
  let last = [];
  return {
    element: h("div", { class: "vl-diagram-side" }, canvas, words),
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
          words,
          h("div", { class: "vl-side-name" }, "Image"),
          h("div", {}, `predicted: ${apart(predicted)} (${percent(probability)})`),
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
        words,
        h("div", { class: "vl-side-name" }, label ?? `Layer ${data.layers[id]}, ${name}`),
        label && h("div", {}, `layer ${data.layers[id]}, ${name}`),
        h("div", {}, `importance ${show(data.importances[id])}`),
        h("div", {}, `${shareWords(data.shares[id])} of its layer`),
        data.kinds[id] && h("div", { class: "vl-side-kind", title: KIND }, data.kinds[id]),
        prefix > 0 && h("div", {}, prefixWords(data, values)),
        measured,
      );
    },
  };
}

/** How much of a node's importance lies on the prefix tokens.
 * @param {Data} data @param {Float32Array} values
 */
function prefixWords({ prefixNames }, values) {
  let total = 0;
  for (const value of values) total += Math.abs(value);
  let before = 0;
  for (let i = 0; i < prefixNames.length; i++) before += Math.abs(values[i]);
  const names = prefixNames.length > 1 ? `${prefixNames[0]} and registers` : prefixNames[0];
  return `${shareWords(total > 0 ? before / total : 0)} on ${names}`;
}
