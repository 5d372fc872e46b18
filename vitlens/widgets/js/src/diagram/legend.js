// The legend of lines, colours and frames.

/** @import { Scene } from "./scene.js" */
import { fill, h, percent, s } from "../lib/dom.js";
import { NEGATIVE, POSITIVE } from "../lib/scale.js";
import { drawnLinks, widthOf } from "./edges.js";

export function createLegend() {
  const element = h("div", { class: "vl-diagram-legend" });
  let last = "";
  return {
    element,
    /** @param {Scene} scene @param {string[]} prefixNames */
    update(scene, prefixNames) {
      const state = JSON.stringify([samples(scene.thickest), drawnLinks(scene) < scene.links.length, prefixNames]);
      if (state === last) return;
      last = state;
      const first = prefixNames[0];
      fill(
        element,
        entry(line("var(--vl-positive)", 3, false), "raises the target"),
        entry(line("var(--vl-negative)", 3, true), "lowers the target"),
        scene.thickest > 0 &&
          h(
            "span",
            { class: "vl-legend-entry" },
            samples(scene.thickest).flatMap((share) => [
              line("currentColor", widthOf(share, scene.thickest), false),
              h("span", {}, percent(share)),
            ]),
            h("span", {}, "of its layer’s importance"),
          ),
        entry(
          h("span", {
            class: "vl-legend-heat",
            style: { "background-image": `linear-gradient(to right, ${NEGATIVE}, #ebebeb, ${POSITIVE})` },
          }),
          "importance per patch, relative to the node’s largest",
        ),
        first && entry(h("span", { class: "vl-legend-token" }), `the same for ${prefixNames.join(", ")}`),
        entry(h("span", { class: "vl-legend-box vl-legend-error" }), "error node: the part that the SAE does not explain"),
        entry(h("span", { class: "vl-legend-box vl-legend-pinned" }), "pinned"),
        drawnLinks(scene) < scene.links.length &&
          h("span", { class: "vl-legend-entry" }, `drawn: the ${drawnLinks(scene)} strongest edges`),
      );
    },
  };
}

/** Round shares below the largest. @param {number} thickest */
function samples(thickest) {
  if (!(thickest > 0)) return [];
  const most = roundDown(thickest);
  return [roundDown(most / 10), most];
}

/** The largest number below that is 1, 2 or 5 times a power of ten. @param {number} x */
function roundDown(x) {
  const power = 10 ** Math.floor(Math.log10(x) + 1e-9);
  const step = [5, 2, 1].find((one) => one * power <= x * (1 + 1e-9)) ?? 1;
  return Number((step * power).toPrecision(1));
}

/** @param {Element} sign @param {string} text */
const entry = (sign, text) => h("span", { class: "vl-legend-entry" }, sign, text);

/** @param {string} colour @param {number} width @param {boolean} dashed */
function line(colour, width, dashed) {
  return s(
    "svg",
    { width: 30, height: 10, "aria-hidden": "true" },
    s("line", {
      x1: 0,
      x2: 30,
      y1: 5,
      y2: 5,
      style: { stroke: colour, "stroke-width": width, "stroke-dasharray": dashed ? "7 4" : "none" },
    }),
  );
}
