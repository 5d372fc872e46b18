// A feature in the atlas: its images, frequency, scores and nearest features.

/** @import { Model, NodeKey } from "../lib/types" */
import { counted, decimals, fill, h, percent, show } from "../lib/dom.js";
import { loadStrip } from "../lib/heat.js";
import { floats, halfs } from "../lib/model.js";
import { tenths } from "../lib/share.js";
import { createHeat } from "./heats.js";
import { histogram } from "./hist.js";
import { linkList } from "./links.js";
import { logitBars } from "./logits.js";
import { scoreList } from "./scores.js";
import { section } from "./section.js";
import { topImages } from "./top.js";
import { tuningPlots } from "./tuning.js";

const LENS =
  "Direct effect on the read-out, bypassing the blocks above: change of each logit per unit of the " +
  "feature, minus the mean.";
const MAP = "Mean activation over all images.";
const NEAR = "By the cosine of decoder rows.";
const CHANCE = "Vertical line and “chance”: the 99% level of the same measure on shuffled data.";
const NEIGHBOURS = [
  ["before", "in the previous layer"],
  ["same", "in this layer"],
  ["after", "in the next layer"],
];

/**
 * @param {Model} model
 * @param {{ name: (node: NodeKey) => string, follow: (node: NodeKey) => void,
 *   hover: (node: NodeKey | null) => void }} to
 */
export function createAtlas(model, to) {
  const facts = h("div", { class: "vl-card-figures" });
  const parts = {
    top: h("div"),
    hist: h("div"),
    classes: h("div"),
    lens: h("div"),
    scores: h("div"),
    tuning: h("div"),
    near: h("div", { class: "vl-card-near" }),
  };
  const map = createHeat("");
  const sections = {
    top: section("Top images", parts.top),
    hist: section("Activation", parts.hist),
    map: section("Position in the image", map.element, MAP),
    classes: section("Classes with the highest activation", parts.classes),
    lens: section("Classes it raises and lowers (logit lens)", parts.lens, LENS),
    scores: section("Scores", parts.scores, CHANCE),
    tuning: section("Response to synthetic stimuli", parts.tuning),
    near: section("Nearest features", parts.near, NEAR),
  };
  const title = h("h2", { class: "vl-card-part" });
  const { top, tuning, near, ...others } = sections;
  const columns = h("div", { class: "vl-card-columns" }, Object.values(others));
  const body = h("div", { class: "vl-card-stack" }, top, columns, tuning, near);
  const element = h("section", { class: "vl-card-atlas" }, title, facts, body);

  /** @type {ImageBitmap | null} */
  let strip = null;
  /** @type {Record<string, any>} */
  let card = {};

  function drawTop() {
    const images = { strip, heats: halfs(model, "top_heats"), grid: model.get("grid") };
    fill(parts.top, topImages(card.top_images, images));
  }

  /** @param {Record<string, any>} next the card */
  function draw(next) {
    card = next;
    const { atlas } = card;
    element.hidden = !card.top_images;
    if (element.hidden) return;
    drawTop();
    facts.hidden = !atlas;
    for (const [name, part] of Object.entries(sections)) part.hidden = name !== "top" && !atlas;
    title.textContent = "On many images";
    if (!atlas) return;
    title.textContent = `On the ${counted(atlas.n_images, "image")} of the atlas`;
    fill(facts, factsOf(atlas));
    const tokens = { active: atlas.active, tokens: atlas.n_tokens, none: "Not active on any image." };
    fill(parts.hist, histogram(atlas.histogram, tokens));
    map.draw(floats(model, "mean_map"), {
      strip: null,
      count: 1,
      grid: model.get("grid"),
      prefixNames: model.get("prefix_names") ?? [],
    });
    fill(parts.classes, classList(atlas));
    fill(parts.lens, logitBars(atlas.up, atlas.down));
    fill(parts.scores, scoreList(atlas.scores));
    sections.tuning.hidden = !atlas.tuning;
    if (atlas.tuning) fill(parts.tuning, tuningPlots(atlas.tuning));
    fill(
      parts.near,
      NEIGHBOURS.map(([key, text]) =>
        linkList(text, links(atlas.neighbours[key]), "None.", {
          ...to,
          write: (cosine) => decimals(cosine, 2),
        }),
      ),
    );
  }

  return {
    element,
    draw,
    drawTop,
    async loadTop() {
      strip = await loadStrip(model.get("top_strip"));
      if (card.top_images) drawTop();
    },
  };
}

/** @param {Record<string, any>} atlas */
const factsOf = (atlas) => [
  fact(percent(atlas.image_frequency), "of images", "image_frequency"),
  fact(percent(atlas.frequency), "of tokens", "frequency"),
  fact(atlas.trust === null ? "–" : atlas.trust.toFixed(2), "trust", `trust: ${atlas.why_trust}`),
  h("div", { class: "vl-card-fact" }, h("span", {}, kindsOf(atlas.token_kinds))),
];

/** The kinds of its active tokens. @param {[string, number][]} kinds */
function kindsOf(kinds) {
  const some = kinds.filter(([, share]) => share > 0);
  const text = some.map(([kind, share]) => `${kind} ${tenths(share)}`);
  return text.length ? `active tokens: ${text.join(", ")}` : "";
}

/** @param {string} value @param {string} text @param {string} [title] */
export const fact = (value, text, title) =>
  h("div", { class: "vl-card-fact", title }, h("strong", {}, value), h("span", {}, text));

/** @param {[number, number, number][]} near */
const links = (near = []) =>
  near.map(([layer, feature, cosine]) => /** @type {[number, number, number, number]} */ ([layer, feature, cosine, cosine]));

/** @param {Record<string, any>} atlas */
function classList({ classes, labels_from }) {
  if (!classes.length) return h("p", { class: "vl-muted" }, "Not active on any class.");
  const widest = Math.max(...classes.map((/** @type {[string, number, number]} */ [, mean]) => mean));
  const source = labels_from === "predictions" ? "Classes are the predictions of the model." : "";
  return h(
    "div",
    {},
    source && h("p", { class: "vl-card-hint vl-muted" }, source),
    h(
      "ul",
      { class: "vl-card-classes", "aria-label": "Classes" },
      classes.map((/** @type {[string, number, number]} */ [name, mean, share]) =>
        h(
          "li",
          { title: `mean activation ${show(mean)} over all tokens` },
          h("span", { class: "vl-card-class" }, name),
          h(
            "span",
            { class: "vl-card-track" },
            h("span", {
              class: "vl-card-effect vl-up",
              style: { width: `${((100 * mean) / widest).toFixed(1)}%` },
            }),
          ),
          h("span", { class: "vl-card-number" }, show(mean)),
          h("span", { class: "vl-card-number vl-muted" }, `in ${(100 * share).toFixed(0)}% of its images`),
        ),
      ),
    ),
  );
}
