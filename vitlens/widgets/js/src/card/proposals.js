// Proposed names, separate from the name, which only people give.

import { fill, h, show } from "../lib/dom.js";

/** @typedef {[string, number | null, string]} Proposal text, score, source */

/** @type {Record<string, string>} */
const SOURCES = {
  class: "from the class it prefers; share of its variance over images explained by classes",
  text: "from words close to its images, compared with the images of other features",
};

/** @param {(text: string) => void} take accepts a proposal as the person's name */
export function createProposals(take) {
  const element = h("div", { class: "vl-card-proposals" });
  return {
    element,
    /** @param {Proposal[]} proposals @param {boolean} named */
    update(proposals, named) {
      element.hidden = !proposals.length;
      fill(
        element,
        h("span", { class: "vl-muted" }, "proposed:"),
        proposals.map(([text, score, source]) =>
          h(
            "span",
            { class: "vl-card-proposal", title: SOURCES[source] ?? source },
            h("em", {}, text),
            h("span", { class: "vl-muted" }, `${source}${score === null ? "" : ` ${show(score)}`}`),
            !named &&
              h(
                "button",
                {
                  type: "button",
                  class: "vl-button vl-quiet vl-needs-kernel",
                  title: "Use this proposal as the name",
                  "aria-label": `Name it ${text}`,
                  onclick: () => take(text),
                },
                "use",
              ),
          ),
        ),
      );
    },
  };
}
