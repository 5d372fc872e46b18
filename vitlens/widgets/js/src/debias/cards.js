// The candidates: their figures, their examples in every group, and a tick to remove them.

/** @import { Model, NodeKey } from "../lib/types" */
import { decimals, fill, h, show } from "../lib/dom.js";
import { drawHeat, loadStrip } from "../lib/heat.js";
import { legend } from "../lib/legend.js";
import { halfs, same, save } from "../lib/model.js";
import { capital, chosen, has, idOf, labelOf, toggle, verb } from "./request.js";

const SIDE = 56; // CSS pixels of an example
const SHARP = 2;
const SOURCES = /** @type {Record<string, string>} */ ({
  "activation difference": "its activation differs between attribute values",
  circuit: "it is part of circuits of wrong predictions",
  picked: "picked by hand",
});

/**
 * @typedef {object} Candidate
 * @property {NodeKey} node
 * @property {string[]} sources
 * @property {number | null} step of the search that added it
 * @property {string} attribute
 * @property {number} effect
 * @property {number} auc
 * @property {number} q
 * @property {number} class_effect
 * @property {number} share
 * @property {number[]} means
 * @property {number} limit
 * @property {number[][]} images
 */

/** @param {Model} model @param {() => boolean} isLive whether there is a kernel */
export function cardList(model, isLive) {
  const list = h("ul", { class: "vl-debias-cards", "aria-label": "Candidate features" });
  const bar = legend({ limit: 1, signed: false, label: "activation, up to the card’s largest" });
  bar.element.querySelector(".vl-legend-ends")?.replaceChildren(h("span", {}, "0"), h("span", {}, "largest"));
  const text = h(
    "span",
    { class: "vl-muted" },
    "Images per group: the one with the highest activation and the median one. Below: the group’s mean. " +
      "d is Cohen’s d, for the attribute within each class and for the class within each attribute value.",
  );
  const element = h("div", {}, h("div", { class: "vl-debias-cards-key" }, bar.element, text), list);
  /** @type {ReturnType<typeof card>[]} */
  let cards = [];
  /** @type {ImageBitmap | null} */
  let strip = null;
  let count = 1;

  function build() {
    const candidates = /** @type {Candidate[]} */ (model.get("debias_cards") ?? []);
    const strongest = Math.max(0.1, ...candidates.flatMap((c) => [Math.abs(c.effect), Math.abs(c.class_effect)]));
    cards = candidates.map((candidate) => card(model, candidate, strongest));
    fill(list, cards.map(({ element }) => element));
    count = 1 + Math.max(0, ...candidates.flatMap((c) => c.images.flat()));
    paint();
    update();
  }

  function paint() {
    const heats = halfs(model, "debias_heats");
    const grid = /** @type {[number, number]} */ (model.get("debias")?.grid ?? [1, 1]);
    const patches = grid[0] * grid[1];
    let at = 0;
    for (const { canvases, candidate } of cards) {
      for (const { canvas, image } of canvases) {
        const values = heats.subarray(at, (at += patches));
        const known = values.length === patches;
        drawHeat(canvas, { strip, index: image, count }, known ? { values, grid, limit: candidate.limit } : null);
      }
    }
  }

  function update() {
    const now = chosen(model);
    for (const one of cards) one.update(has(now, one.candidate.node), !isLive());
  }

  return {
    element,
    build,
    update,
    async loadExamples() {
      strip = await loadStrip(model.get("debias_strip"));
      paint();
    },
    /** Brings the selected card into the list's view, without moving the page. */
    reveal() {
      const found = cards.find(({ candidate }) => same(candidate.node, model.get("selected")));
      if (!found) return;
      const [box, inner] = [list.getBoundingClientRect(), found.element.getBoundingClientRect()];
      if (inner.top < box.top) list.scrollTop -= box.top - inner.top;
      else if (inner.bottom > box.bottom) list.scrollTop += inner.bottom - box.bottom;
    },
  };
}

/** @param {Model} model @param {Candidate} candidate @param {number} strongest */
function card(model, candidate, strongest) {
  const { node } = candidate;
  const tick = h("input", { type: "checkbox", onchange: () => toggle(model, node) });
  const name = h("span", { class: "vl-debias-name" });
  const select = h(
    "button",
    {
      class: "vl-button vl-debias-id",
      title: "Show this feature in the linked views",
      onclick: () => save(model, { selected: same(model.get("selected"), node) ? null : node }),
    },
    idOf(node),
  );
  const { figures, canvases } = examples(model, candidate);
  const element = h(
    "li",
    { class: "vl-debias-card", "data-node": idOf(node) },
    h("div", { class: "vl-debias-head" }, h("label", { class: "vl-debias-tick" }, tick, verb(model).now), select, name),
    h(
      "div",
      { class: "vl-debias-sources" },
      candidate.step != null && badge(`search: ${ordinal(candidate.step)}`, "Order in which the search added this feature"),
      candidate.sources.map((source) => badge(source, SOURCES[source] ?? source)),
    ),
    effects(candidate, strongest),
    h("div", { class: "vl-debias-examples" }, figures),
  );
  return {
    element,
    candidate,
    canvases,
    /** @param {boolean} isChosen @param {boolean} isSaved */
    update(isChosen, isSaved) {
      const label = labelOf(model, node);
      const isSelected = same(model.get("selected"), node);
      tick.checked = isChosen;
      tick.disabled = isSaved;
      tick.title = isSaved ? "Ticking needs a running kernel." : "";
      tick.setAttribute("aria-label", `${capital(verb(model).now)} ${idOf(node)}${label ? `, ${label}` : ""}`);
      select.setAttribute("aria-pressed", String(isSelected));
      select.setAttribute("aria-label", `Select ${idOf(node)}`);
      name.textContent = label;
      name.title = label;
      element.classList.toggle("vl-debias-chosen", isChosen);
      element.classList.toggle("vl-debias-selected", isSelected);
    },
  };
}

/** @param {string} text @param {string} title */
const badge = (text, title) => h("span", { class: "vl-debias-badge", title }, text);

/** @param {Candidate} candidate @param {number} strongest */
function effects({ attribute, effect, auc, q, class_effect, share }, strongest) {
  const line = (/** @type {string} */ text, /** @type {number} */ d, /** @type {string} */ kind) => [
    h("span", { class: "vl-debias-effect-name" }, text),
    h(
      "span",
      { class: "vl-debias-effect-track", "aria-hidden": "true" },
      h("i", { class: kind, style: { width: `${(100 * Math.abs(d)) / strongest}%` } }),
    ),
    h("span", { class: "vl-debias-number" }, `d = ${decimals(d, 2)}`),
  ];
  return h(
    "div",
    { class: "vl-debias-effects" },
    line(`“${attribute}”`, effect, "vl-debias-of-attribute"),
    line("class", class_effect, "vl-debias-of-class"),
    h(
      "span",
      { class: "vl-muted vl-debias-more", title: "AUC 0.5 is chance; q is the p-value, adjusted for the false discovery rate" },
      `AUC ${auc.toFixed(2)}, q ${q < 1e-3 ? "< 0.001" : `= ${q.toFixed(3)}`}`,
      share > 0 && `, ${show(100 * share)}% of circuits of wrong predictions`,
    ),
  );
}

/** A figure for every group, and the canvases in the order of `debias_heats`.
 * @param {Model} model @param {Candidate} candidate
 */
function examples(model, { images, means, node }) {
  const { group_names: groups = [], examples: kinds = [] } = model.get("debias") ?? {};
  /** @type {{ canvas: HTMLCanvasElement, image: number }[]} */
  const canvases = [];
  const figures = groups.map((/** @type {string} */ group, /** @type {number} */ g) => {
    const canvasesOfGroup = images[g].map((image, i) => {
      const canvas = h("canvas", {
        width: SIDE * SHARP,
        height: SIDE * SHARP,
        role: "img",
        title: `${group}, the ${kinds[i]} image`,
        "aria-label": `${idOf(node)} on ${group}, the ${kinds[i]} image`,
      });
      canvases.push({ canvas, image });
      return canvas;
    });
    return h(
      "figure",
      { class: "vl-debias-example" },
      h("figcaption", { title: group }, group),
      canvasesOfGroup,
      h("span", { class: "vl-muted", title: "mean activation over tokens and images of the group" }, short(means[g])),
    );
  });
  return { figures, canvases };
}

/** Two digits: there is little space. @param {number} x */
const short = (x) => show(Number(x.toPrecision(2)));

/** @param {number} n */
const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;
