// One feature: its name, its activation and effects on this image, and its images in the atlas.

/** @import { Model, NodeKey } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { fill, h, isolated, show } from "../lib/dom.js";
import { loadStrip } from "../lib/heat.js";
import { floats, listen, same, save, slowSave } from "../lib/model.js";
import { tenths } from "../lib/share.js";
import { createAtlas, fact } from "./atlas.js";
import { createHeat } from "./heats.js";
import { histogram } from "./hist.js";
import { linkList } from "./links.js";
import { localCard } from "./local.js";
import { logitBars } from "./logits.js";
import { createName, labelOf, nodeName } from "./name.js";
import { createProposals } from "./proposals.js";
import { section } from "./section.js";
import "./style.css";

const ABSENT =
  "Not active on this image, but active in the baseline. Its importance measures its absence.";
const LENS =
  "Direct effect on each logit, bypassing the blocks above. The importance also includes effects " +
  "through those blocks.";

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mount(model, el, signal) {
  const empty = h("p", { class: "vl-card-empty vl-muted" });
  const name = createName(model, signal);
  const hoverSoon = slowSave(model, 120);
  const to = {
    name: (/** @type {NodeKey} */ node) => `${nodeName(model, node)} ${labelOf(model, node)}`.trim(),
    follow: (/** @type {NodeKey} */ node) => save(model, { selected: node }),
    hover: (/** @type {NodeKey | null} */ node) => hoverSoon({ hovered: node }),
  };
  const proposals = createProposals(name.give);
  const atlas = createAtlas(model, to);
  const facts = h("div", { class: "vl-card-facts" });
  const activation = createHeat("activation");
  const importance = createHeat("importance");
  const hist = h("div");
  const logits = h("div");
  const edges = h("div", { class: "vl-card-edges" });
  const sections = {
    hist: section("Activation on this image", hist),
    logits: section("Classes it raises and lowers directly (logit lens)", logits, LENS),
    edges: section("Strongest edges", edges),
  };
  const heats = h("div", { class: "vl-card-heats" }, activation.element, importance.element);
  const body = h(
    "div",
    { class: "vl-card-body" },
    heats,
    h("div", { class: "vl-card-text" }, sections.hist, sections.logits),
    sections.edges,
  );
  const title = h("h2", { class: "vl-card-part" }, "On this image");
  const silent = h("p", { class: "vl-card-silent vl-muted" });
  const onImage = h("div", { class: "vl-card-image" }, title, facts, silent, body);
  const root = h(
    "article",
    { class: "vl-card" },
    empty,
    name.element,
    proposals.element,
    onImage,
    atlas.element,
  );
  el.append(root);

  /** @type {ImageBitmap | null} */
  let strip = null;
  /** @type {Record<string, any>} */
  let card = {};
  /** @type {Float32Array} */
  let values = new Float32Array(0);

  /** Shows the card of the selected node, or waits for it. */
  function update() {
    const node = model.get("selected");
    if (!node) return put({}, new Float32Array(0));
    const found = model.get("card") ?? {};
    if (same(found.node, node)) return put(found, floats(model, "card_data"));
    root.setAttribute("aria-busy", "true");
    ask(model, "ping").catch((error) => {
      if (!same(model.get("selected"), node) || signal.aborted) return;
      const local = localCard(model, node);
      if (local) put(local.card, local.values);
      else put({ node, why: error.message }, new Float32Array(0));
    });
  }

  /** @param {Record<string, any>} next @param {Float32Array} numbers */
  function put(next, numbers) {
    card = next;
    values = numbers;
    root.setAttribute("aria-busy", "false");
    draw();
  }

  function draw() {
    const known = Boolean(card.node);
    const complete = known && !card.why;
    empty.hidden = complete;
    empty.textContent = card.why ?? "Select a feature to see its card.";
    name.element.hidden = !known;
    // Without an image, only the atlas is shown.
    const hasImage = complete && card.importance !== undefined;
    onImage.hidden = !hasImage;
    title.hidden = !card.atlas;
    name.update(card.node);
    root.setAttribute("aria-label", known ? to.name(card.node) : "Feature card");
    proposals.update(card.atlas?.proposals ?? [], known && Boolean(labelOf(model, card.node)));
    atlas.draw(complete ? atlasOf(card) : {});
    if (hasImage) drawOnImage();
  }

  /** The parts of the atlas; a card made without a kernel has none.
   * @param {Record<string, any>} card
   */
  function atlasOf(card) {
    if (card.top_images || card.kind !== "feature") return card;
    // The reason for missing top images does not depend on the feature.
    const other = model.get("card")?.top_images;
    const top = { available: false, why: "This needs a running kernel.", items: [] };
    return { ...card, top_images: other?.available === false ? other : top };
  }

  function drawOnImage() {
    const target = card.kind === "target";
    drawFacts(target);
    drawHeats();
    drawEdges(target);
    hideBlanks(target);
    if (target) return;
    fill(hist, histogram(card.histogram, { active: card.active, tokens: card.n_tokens }));
    const needs = h("p", { class: "vl-muted" }, "This needs a running kernel.");
    fill(logits, card.up ? logitBars(card.up, card.down) : needs);
  }

  /** Hides empty sections of a feature that is not active.
   * @param {boolean} target
   */
  function hideBlanks(target) {
    const none = isSilent();
    silent.hidden = !none;
    silent.textContent = card.importance ? ABSENT : "Not active on this image.";
    heats.hidden = target || (none && importance.element.hidden);
    sections.hist.hidden = target || none;
    sections.logits.hidden = target || (none && !card.up?.length && !card.down?.length);
    sections.edges.hidden = none && !card.edges_in.length && !card.edges_out.length;
    body.hidden = heats.hidden && sections.logits.hidden && sections.edges.hidden;
  }

  const isSilent = () => card.kind === "feature" && card.active === 0;

  /** @param {boolean} target */
  function drawFacts(target) {
    if (target) {
      fill(facts, fact(show(card.importance), "value on this image"));
      return;
    }
    const error = card.kind === "error";
    fill(
      facts,
      fact(tenths(card.share), `of layer ${card.node[0]}’s positive importance`),
      fact(show(card.importance), `importance for “${isolated(card.target)}”`),
      error
        ? fact("error node", "the part of the stream this layer’s SAE does not explain")
        : fact(`${card.active} of ${card.n_tokens}`, "tokens active"),
    );
  }

  function drawHeats() {
    const n = values.length / 2;
    const image = {
      strip,
      count: model.get("n_images") ?? 1,
      grid: model.get("grid"),
      prefixNames: model.get("prefix_names") ?? [],
    };
    const shown = (/** @type {Float32Array} */ heat) =>
      isSilent() && !heat.some(Boolean) ? heat.subarray(0, 0) : heat;
    activation.draw(shown(values.subarray(0, n)), image);
    importance.draw(shown(values.subarray(n)), image);
  }

  /** @param {boolean} target */
  function drawEdges(target) {
    const none = card.kind === "error" ? "Error nodes have no incoming edges." : "No edges.";
    const into = card.is_first ? "The first layer has no incoming edges." : none;
    fill(
      edges,
      linkList(target ? "from the last layer" : "in", card.edges_in, into, to),
      !target && linkList("out", card.edges_out, "No edges.", to),
    );
  }

  async function loadImage() {
    strip = await loadStrip(model.get("image_strip"));
    if (!signal.aborted && values.length) drawHeats();
  }

  listen(model, ["selected", "card", "card_data"], update, signal);
  listen(model, ["labels"], draw, signal);
  listen(model, ["image_strip", "grid", "prefix_names"], () => void loadImage(), signal);
  listen(model, ["top_strip"], () => void atlas.loadTop(), signal);
  listen(model, ["top_heats"], atlas.drawTop, signal);
  signal.addEventListener("abort", () => root.remove(), { once: true });
  update();
  void loadImage();
  void atlas.loadTop();
}
