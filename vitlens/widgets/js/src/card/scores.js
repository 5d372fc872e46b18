// Scores, each with its chance level.

import { fixed, h } from "../lib/dom.js";

/** @typedef {[string, number | null, number | null]} Score name, value, 99 % level by chance */

/** @type {Record<string, [string, string]>} */
const MEANINGS = {
  position: ["position", "share of its variance over patches explained by their position"],
  extent: ["extent", "mean share of active patches, over images with any"],
  prefix_share: ["prefix tokens", "share of its activation on prefix tokens"],
  selectivity: ["selectivity", "preference for its best class (Morcos et al. 2018)"],
  class_information: ["class", "share of its variance over images explained by classes"],
  orientation: ["orientation", "preference for edges and gratings of one orientation"],
  curvature: ["curvature", "preference for arcs over straight lines; below 0 for straight lines"],
  direction: ["arc direction", "preference for arcs that bulge in one direction"],
  hue: ["hue", "preference for one hue"],
  texture: ["texture", "response to its best texture over the mean response"],
  response: ["response", "largest response to any stimulus over the 99th percentile on photographs"],
  monosemanticity: ["one meaning", "similarity of its top images, compared with random images"],
};

/** @param {Score[]} scores */
export function scoreList(scores) {
  const known = scores.filter(([name]) => name in MEANINGS);
  const rows = known.map(([name, value, chance]) => {
    const [text, hint] = MEANINGS[name];
    const level = chance === null ? "" : `; chance level ${fixed(chance)} (99%)`;
    return h(
      "li",
      { class: "vl-card-score", title: `${name}: ${hint}${level}` },
      h("span", { class: "vl-card-class" }, text),
      h(
        "span",
        { class: "vl-card-track vl-card-scale", role: "presentation" },
        value !== null &&
          h("span", {
            class: `vl-card-effect vl-${value < 0 ? "down" : "up"}`,
            style: { width: part(value) },
          }),
        chance !== null && h("span", { class: "vl-card-level", style: { left: part(chance) } }),
      ),
      h("span", { class: "vl-card-number" }, value === null ? "–" : fixed(value)),
      h(
        "span",
        { class: "vl-card-number vl-muted" },
        chance === null ? "" : `chance ${fixed(chance)}`,
      ),
    );
  });
  return h("ul", { class: "vl-card-scores", "aria-label": "Scores" }, rows);
}

/** @param {number} value */
const part = (value) => `${(100 * Math.min(1, Math.abs(value))).toFixed(1)}%`;
