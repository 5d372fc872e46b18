// One feature of one image: its name, where it is, what it says, what it is connected to.

/** @import { Model, NodeKey } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { fill, h, show } from "../lib/dom.js";
import { loadStrip } from "../lib/heat.js";
import { floats, halfs, listen, same, save, slowSave } from "../lib/model.js";
import { tenths } from "../lib/share.js";
import { createHeat } from "./heats.js";
import { histogram } from "./hist.js";
import { linkList } from "./links.js";
import { localCard } from "./local.js";
import { logitBars } from "./logits.js";
import { createName, labelOf, nodeName } from "./name.js";
import "./style.css";
import { topImages } from "./top.js";

const LENS = "Change of each logit if what it adds here went straight to the read-out.";

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mount(model, el, signal) {
  const empty = h("p", { class: "vl-card-empty vl-muted" });
  const name = createName(model, signal);
  const facts = h("div", { class: "vl-card-facts" });
  const activation = createHeat("activation");
  const importance = createHeat("importance");
  const hist = h("div");
  const logits = h("div");
  const edges = h("div", { class: "vl-card-edges" });
  const top = h("div");
  const sections = {
    hist: section("Activation on this image", hist),
    logits: section("Classes it pushes by itself (logit lens)", logits, LENS),
    edges: section("Strongest edges", edges),
    top: section("Top images", top),
  };
  const heats = h("div", { class: "vl-card-heats" }, activation.element, importance.element);
  const body = h(
    "div",
    { class: "vl-card-body" },
    heats,
    h("div", { class: "vl-card-words" }, sections.hist, sections.logits),
    sections.edges,
    sections.top,
  );
  const root = h("article", { class: "vl-card" }, empty, name.element, facts, body);
  el.append(root);

  /** @type {ImageBitmap | null} */
  let strip = null;
  /** @type {ImageBitmap | null} */
  let topStrip = null;
  /** @type {Record<string, any>} */
  let card = {};
  /** @type {Float32Array} */
  let values = new Float32Array(0);

  const hoverSoon = slowSave(model, 120);
  const to = {
    name: (/** @type {NodeKey} */ node) => `${nodeName(model, node)} ${labelOf(model, node)}`.trim(),
    follow: (/** @type {NodeKey} */ node) => save(model, { selected: node }),
    hover: (/** @type {NodeKey | null} */ node) => hoverSoon({ hovered: node }),
  };

  /** Takes the card of the selected node, or waits for it. */
  function take() {
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
    facts.hidden = body.hidden = !complete;
    name.update(card.node);
    root.setAttribute("aria-label", known ? to.name(card.node) : "Feature card");
    if (!complete) return;
    const target = card.kind === "target";
    drawFacts(target);
    drawHeats();
    heats.hidden = sections.hist.hidden = sections.logits.hidden = target;
    sections.top.hidden = card.kind !== "feature";
    drawEdges(target);
    if (target) return;
    fill(hist, histogram(card.histogram, { active: card.active, tokens: card.n_tokens }));
    const needs = h("p", { class: "vl-muted" }, "This needs a running kernel.");
    fill(logits, card.up ? logitBars(card.up, card.down) : needs.cloneNode(true));
    // Why there are no top images does not depend on the feature.
    const found = card.top_images ?? model.get("card")?.top_images;
    const mine = card.top_images || found?.available === false;
    const heatsOfTop = halfs(model, "top_heats");
    fill(top, mine ? topImages(found, topStrip, heatsOfTop, model.get("grid")) : needs);
  }

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
      fact(show(card.importance), `importance for “${card.target}”`),
      error
        ? fact("error node", "what this layer’s SAE misses")
        : fact(`${card.active} of ${card.n_tokens}`, "tokens active"),
    );
  }

  function drawHeats() {
    const n = values.length / 2;
    const place = {
      strip,
      count: model.get("n_images") ?? 1,
      grid: model.get("grid"),
      prefixNames: model.get("prefix_names") ?? [],
    };
    activation.draw(values.subarray(0, n), place);
    importance.draw(values.subarray(n), place);
  }

  /** @param {boolean} target */
  function drawEdges(target) {
    const none = card.kind === "error" ? "Nothing leads into an error node." : "No edges.";
    const into = card.node[0] === 0 ? "The first layer has none before it." : none;
    fill(
      edges,
      linkList(target ? "from the last layer" : "in", card.edges_in, into, to),
      !target && linkList("out", card.edges_out, "No edges.", to),
    );
  }

  async function loadPicture() {
    strip = await loadStrip(model.get("picture"));
    if (!signal.aborted && values.length) drawHeats();
  }

  async function loadTop() {
    topStrip = await loadStrip(model.get("top_pictures"));
    if (!signal.aborted) draw();
  }

  listen(model, ["selected", "card", "card_data"], take, signal);
  listen(model, ["labels"], draw, signal);
  listen(model, ["picture", "grid", "prefix_names"], () => void loadPicture(), signal);
  listen(model, ["top_pictures", "top_heats"], () => void loadTop(), signal);
  signal.addEventListener("abort", () => root.remove(), { once: true });
  take();
  void loadPicture();
  void loadTop();
}

/** @param {string} words @param {HTMLElement} content @param {string} [hint] */
const section = (words, content, hint) =>
  h(
    "section",
    { class: "vl-card-section" },
    h("h3", {}, words),
    hint && h("p", { class: "vl-card-hint vl-muted" }, hint),
    content,
  );

/** @param {string} value @param {string} words */
const fact = (value, words) =>
  h("div", { class: "vl-card-fact" }, h("strong", {}, value), h("span", {}, words));
