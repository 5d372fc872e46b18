// Scores, each with what chance reaches: a figure, never a verdict.

import { fixed, h } from "../lib/dom.js";

/** @typedef {[string, number | null, number | null]} Score name, value, 99 % level by chance */

/** @type {Record<string, [string, string]>} */
const MEANINGS = {
  position: ["position", "share of its variance over patches that their place explains"],
  extent: ["extent", "mean share of the patches active where the image has any"],
  prefix_share: ["prefix tokens", "share of its activation on the tokens before the patches"],
  selectivity: ["selectivity", "how far it prefers its best class (Morcos et al. 2018)"],
  class_information: ["class", "share of its variance over images that classes explain"],
  orientation: ["orientation", "how far it prefers edges and gratings of one orientation"],
  curvature: ["curvature", "arcs before straight lines; below 0 straight lines before arcs"],
  direction: ["arc direction", "how far it prefers arcs that bulge one way"],
  hue: ["hue", "how far it prefers one hue"],
  texture: ["texture", "its best texture over the mean of all"],
  response: ["response", "largest response to any stimulus over the 99th percentile on photographs"],
  monosemanticity: ["one meaning", "how much more alike its top images are than random ones"],
};

/** @param {Score[]} scores */
export function scoreList(scores) {
  const known = scores.filter(([name]) => name in MEANINGS);
  const rows = known.map(([name, value, chance]) => {
    const [words, hint] = MEANINGS[name];
    const level = chance === null ? "" : `; chance reaches ${fixed(chance)} (99% level)`;
    return h(
      "li",
      { class: "vl-card-score", title: `${name}: ${hint}${level}` },
      h("span", { class: "vl-card-class" }, words),
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
