// Nodes at the other end of edges, or similar nodes, to follow.

/** @import { NodeKey } from "../lib/types" */
import { h } from "../lib/dom.js";
import { tenths } from "../lib/share.js";

/** @typedef {[number, number, number, number]} Link layer, feature, weight, share */

/**
 * @param {string} text
 * @param {Link[]} links
 * @param {string} none text when there are none
 * @param {{ name: (node: NodeKey) => string, follow: (node: NodeKey) => void,
 *   hover: (node: NodeKey | null) => void, write?: (share: number) => string }} to
 */
export function linkList(text, links, none, { name, follow, hover, write = tenths }) {
  const widest = Math.max(...links.map(([, , weight]) => Math.abs(weight)), 0);
  const rows = links.map(([layer, feature, weight, share]) => {
    /** @type {NodeKey} */
    const node = [layer, feature];
    return h(
      "li",
      {},
      h(
        "button",
        {
          type: "button",
          class: "vl-card-link",
          dataset: { node: node.join("/") },
          title: name(node),
          onclick: () => follow(node),
          onpointerenter: () => hover(node),
          onpointerleave: () => hover(null),
        },
        h("span", { class: "vl-card-end" }, name(node)),
        h(
          "span",
          { class: "vl-card-track" },
          h("span", {
            class: `vl-card-effect vl-${weight < 0 ? "down" : "up"}`,
            style: { width: `${((100 * Math.abs(weight)) / (widest || 1)).toFixed(1)}%` },
          }),
        ),
        h("span", { class: "vl-card-number" }, write(share)),
      ),
    );
  });
  return h(
    "div",
    { class: "vl-card-links" },
    h("h4", {}, text),
    rows.length ? h("ul", { "aria-label": text }, rows) : h("p", { class: "vl-muted" }, none),
  );
}
