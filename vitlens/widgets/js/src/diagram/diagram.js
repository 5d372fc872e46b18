// A circuit: pruned, navigated and annotated in the browser.

/** @import { Model, NodeKey } from "../lib/types" */
/** @import { Data } from "./data.js" */
/** @import { View } from "./edges.js" */
/** @import { Kept } from "./prune.js" */
/** @import { Item, Scene } from "./scene.js" */
/** @import { NodeStates } from "./nodes.js" */
import { counted, h } from "../lib/dom.js";
import { loadStrip } from "../lib/heat.js";
import { listen, same, save, slowSave } from "../lib/model.js";
import { createActions } from "./actions.js";
import { createButtons, createSliders } from "./bar.js";
import { idOf, keyOf, readData } from "./data.js";
import { drawAll, drawLit } from "./edges.js";
import { createHelp, HELP } from "./help.js";
import { createLegend } from "./legend.js";
import { createAnnotations } from "./annotations.js";
import { createNaming } from "./name.js";
import { createNodes } from "./nodes.js";
import { globalOrder, tidy } from "./order.js";
import { lit } from "./paths.js";
import { prune } from "./prune.js";
import { buildScene, heightOf, pitchFor, SIZE } from "./scene.js";
import { createSide } from "./side.js";
import { createThumbs } from "./thumbs.js";
import { fitted, handleGestures, MARGIN, opening, scaleFor } from "./view.js";

const RULES = ["nodes_per_layer", "node_share", "edge_share"];
const DATA = ["graph_info", "node_features", "node_importances", "edge_weights", "node_heat", "grid"];
const HEIGHT = [300, 600];
export class Diagram {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.signal = signal;
    this.annotations = createAnnotations(model);
    this.saveSoon = slowSave(model);
    /** @type {Data | null} */
    this.data = null;
    /** @type {ImageBitmap | null} */
    this.strip = null;
    /** @type {Float64Array} */
    this.rank = new Float64Array(0);
    /** @type {Kept | null} */
    this.kept = null;
    /** @type {Scene | null} */
    this.scene = null;
    /** @type {View} */
    this.view = { scale: 1, x: 0, y: 0 };
    /** @type {"opening" | "fitted" | "own"} */
    this.framing = "opening"; // "own": the user zoomed or moved the view
    this.pitch = SIZE.pitch[0];
    /** @type {Set<number>} candidates chosen for a group */
    this.chosen = new Set();
    /** @type {Set<string>} names of supernodes whose members are shown */
    this.opened = new Set();
    /** @type {Set<string>} */
    this.due = new Set();
    this.frame = 0;
    /** @type {string | null} the item under the pointer */
    this.pointed = null;
    this.colours = { positive: "", negative: "" };
    /** @type {string | null} the item that gets the focus once it exists */
    this.nextFocus = null;

    this.base = h("canvas", { class: "vl-edges", "aria-hidden": "true" });
    this.over = h("canvas", { class: "vl-edges vl-edges-lit", "aria-hidden": "true" });
    this.thumbs = createThumbs(this);
    this.headers = h("div", { class: "vl-layer-heads", "aria-hidden": "true" });
    this.world = h("div", { class: "vl-world" }, this.headers);
    this.stage = h(
      "div",
      {
        class: "vl-stage",
        role: "group",
        "aria-roledescription": "circuit",
        "aria-label": "Circuit in layers, from the image to the target",
        "aria-description": HELP.join(" "),
      },
      h("div", { class: "vl-clip" }, this.base, this.over, this.thumbs.canvas, this.world),
    );
    this.live = h("div", { class: "vl-hint", role: "status", "aria-live": "polite" });
    this.count = h("span", { class: "vl-muted vl-diagram-count", role: "status" });
    this.side = createSide(this);
    this.legend = createLegend();
    this.naming = createNaming(this.stage);
    this.nodes = createNodes(this.world);
    this.sliders = createSliders((rule, value, done) => {
      if (done) save(this.model, { [rule]: value });
      else this.saveSoon({ [rule]: value });
      if (done) this.plan("size"); // rows stay in place while the slider moves
    });
    this.actions = createActions(this);
    this.buttons = createButtons(this.actions.buttons);
    this.root = h(
      "div",
      { class: "vl-diagram" },
      h("div", { class: "vl-diagram-bar" }, this.sliders.element, this.count),
      h("div", { class: "vl-diagram-body" }, this.side.element, this.stage),
      this.buttons.element,
      this.legend.element,
      createHelp(),
      this.live,
    );
    el.append(this.root);
  }

  start() {
    const { model, signal, stage } = this;
    listen(model, DATA, () => this.plan("data"), signal);
    listen(model, ["graph_info"], () => this.annotations.forget(), signal);
    listen(model, ["image_strip"], () => this.loadImage(), signal);
    listen(model, [...RULES, "pinned"], () => this.plan("prune"), signal);
    listen(model, ["groups", "labels", "ablations", "can_ablate"], () => this.plan("scene"), signal);
    listen(model, ["selected"], () => this.plan("scene", "light"), signal);
    listen(model, ["hovered"], () => this.plan("light"), signal);
    const on = { signal };
    stage.addEventListener("click", (event) => this.actions.clicked(event), on);
    this.root.addEventListener("keydown", (event) => this.actions.pressed(event), on);
    stage.addEventListener("pointerover", (event) => this.point(this.itemAt(event)?.key ?? null), on);
    stage.addEventListener("pointerleave", () => this.point(null), on);
    stage.addEventListener("focusin", (event) => this.focused(event), on);
    stage.addEventListener("focusout", () => this.plan("light"), on);
    handleGestures(stage, signal, {
      view: () => this.view,
      move: (view) => this.move(view),
      wheels: (event) =>
        event.ctrlKey || event.metaKey || stage.matches(":focus-within") || this.actions.isFull(),
    });
    const sized = new ResizeObserver(() => this.plan("size"));
    sized.observe(stage);
    const root = this.root.closest(".vl-root") ?? this.root;
    root.addEventListener("vl-theme", () => this.plan("theme", "edges", "light"), on);
    signal.addEventListener("abort", () => {
      sized.disconnect();
      cancelAnimationFrame(this.frame);
      this.thumbs.clear();
    });
    this.loadImage();
    this.plan("data");
  }

  async loadImage() {
    this.strip = await loadStrip(this.model.get("image_strip")).catch(() => null);
    if (this.signal.aborted) return;
    this.thumbs.clear();
    this.plan("thumbs", "light");
  }

  /** The image, for drawing. */
  ground() {
    return { strip: this.strip, count: this.model.get("n_images") ?? 1 };
  }

  /** Plans work for the next frame. @param {...string} what */
  plan(...what) {
    for (const one of what) this.due.add(one);
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const due = this.due;
      this.due = new Set();
      if (!this.signal.aborted) this.draw(due);
    });
  }

  /** @param {Set<string>} due */
  draw(due) {
    const all = due.has("data");
    if (all) this.readAll();
    const { data } = this;
    this.root.classList.toggle("vl-empty", !data);
    if (!data) return;
    const has = (/** @type {string[]} */ ...what) => all || what.some((one) => due.has(one));
    if (has("theme")) this.readColours();
    if (has("prune")) this.prune(data);
    if (has("size")) this.pace(data);
    if (all) tidy(this.rank, /** @type {Kept} */ (this.kept));
    if (has("prune", "scene", "size")) this.arrange(data);
    if (has("size")) this.resize();
    const moved = has("prune", "scene", "size", "view");
    if (moved || has("edges")) this.drawEdges();
    if (moved || has("thumbs")) this.thumbs.draw(data, /** @type {Scene} */ (this.scene), this.view);
    this.light();
  }

  readAll() {
    this.data = readData(this.model);
    if (!this.data) return;
    this.rank = globalOrder(this.data);
    this.chosen.clear();
    this.framing = "opening";
    this.thumbs.clear();
    this.nodes.forget();
  }

  /** @param {Data} data */
  prune(data) {
    const pinned = this.annotations.pinned().map((key) => idOf(data, key));
    this.kept = prune(data, {
      count: Math.min(this.model.get("nodes_per_layer"), data.maxCount),
      nodeShare: this.model.get("node_share"),
      edgeShare: this.model.get("edge_share"),
      pinned: pinned.filter((id) => id !== undefined),
    });
  }

  /** Spreads the columns over the stage. @param {Data} data */
  pace(data) {
    const { clientWidth, clientHeight } = this.stage;
    if (!clientWidth || this.framing === "own") return;
    const rows = Math.max(.../** @type {Kept} */ (this.kept).nodes.map((ids) => ids.length));
    const height = this.stage.style.height ? clientHeight : HEIGHT[1];
    const scale = scaleFor(heightOf(rows), height, this.framing === "opening");
    this.pitch = pitchFor(data.counts.length, clientWidth - 2 * MARGIN, Math.min(1, scale));
  }

  /** @param {Data} data */
  arrange(data) {
    const kept = /** @type {Kept} */ (this.kept);
    const states = this.nodeStates(data);
    const closed = new Map([...states.groups].filter(([, name]) => !this.opened.has(name)));
    const scene = buildScene(data, kept, this.rank, { groups: closed, pitch: this.pitch });
    this.scene = scene;
    this.nodes.update(data, scene, states);
    if (this.nextFocus && scene.indexOf.has(this.nextFocus)) this.nodes.focus(this.nextFocus);
    this.nextFocus = null;
    this.drawHeaders(data, scene);
    const [count, nodeShare, edgeShare] = RULES.map((rule) => this.model.get(rule));
    this.sliders.update({ nodes_per_layer: count, node_share: nodeShare, edge_share: edgeShare }, data.maxCount);
    this.legend.update(scene, data.prefixNames);
    const text = `${counted(scene.nodes, "node")}, ${counted(scene.edges, "edge")}`;
    if (this.count.textContent !== text) this.count.textContent = text;
    this.actions.update();
  }

  /** @param {Data} data @returns {NodeStates} */
  nodeStates(data) {
    /** @param {NodeKey} key */
    const id = (key) => idOf(data, key) ?? -1;
    return {
      pinned: new Set(this.annotations.pinned().map(id)),
      labels: new Map(this.annotations.labels().map(([l, f, text]) => [id([l, f]), text])),
      groups: new Map(this.annotations.groups().flatMap(([name, keys]) => keys.map((key) => [id(key), name]))),
      ablated: new Map(
        (this.model.get("ablations") ?? []).map((/** @type {[number, number, number | null]} */ [l, f, value]) => [
          id([l, f]),
          value,
        ]),
      ),
      chosen: this.chosen,
      selected: idOf(data, this.model.get("selected")),
    };
  }

  /** @param {Data} data @param {Scene} scene */
  drawHeaders(data, scene) {
    this.world.style.setProperty("--vl-pitch", `${scene.pitch}px`);
    const top = -(scene.height - SIZE.head) / 2 - SIZE.head;
    const names = [...data.layerNumbers.map((layer) => `layer ${layer}`), "target"];
    const known = [...this.headers.children].map((header) => header.textContent);
    if (!same(known, names)) {
      this.headers.replaceChildren(...names.map((name) => h("div", { class: "vl-layer-head" }, name)));
    }
    [...this.headers.children].forEach((head, column) => {
      const y = column === names.length - 1 ? -SIZE.target[1] / 2 - 8 - SIZE.head : top;
      /** @type {HTMLElement} */ (head).style.transform = `translate(${column * scene.pitch}px,${y}px)`;
    });
  }

  resize() {
    const scene = /** @type {Scene} */ (this.scene);
    if (!this.stage.clientWidth) return; // not visible yet
    if (!this.stage.style.height && !this.actions.isFull()) {
      const wanted = scene.height * opening(scene, this.stage.clientWidth, HEIGHT[1]).scale + 24;
      this.stage.style.height = `${Math.round(Math.min(HEIGHT[1], Math.max(HEIGHT[0], wanted)))}px`;
    }
    const { clientWidth, clientHeight } = this.stage;
    const ratio = Math.min(2, globalThis.devicePixelRatio || 1);
    for (const canvas of [this.base, this.over, this.thumbs.canvas]) {
      canvas.dataset.ratio = String(ratio);
      canvas.width = Math.round(clientWidth * ratio);
      canvas.height = Math.round(clientHeight * ratio);
    }
    if (this.framing === "opening") this.setView(opening(scene, clientWidth, clientHeight));
    if (this.framing === "fitted") this.setView(fitted(scene, clientWidth, clientHeight));
  }

  /** @param {View} view */
  setView(view) {
    this.view = view;
    this.world.style.transform = `translate(${view.x}px,${view.y}px) scale(${view.scale})`;
    this.world.classList.toggle("vl-far", view.scale < 0.45);
  }

  /** @param {View} view */
  move(view) {
    this.framing = "own";
    this.setView(view);
    this.plan("view");
  }

  fit() {
    this.framing = "fitted";
    this.plan("size");
  }

  readColours() {
    const style = getComputedStyle(this.root);
    this.colours = {
      positive: style.getPropertyValue("--vl-positive") || "#0072b2",
      negative: style.getPropertyValue("--vl-negative") || "#d55e00",
    };
  }

  drawEdges() {
    if (this.scene) drawAll(this.base, this.scene, this.view, this.colours);
  }

  /** Highlights the node under the pointer, with the focus, or selected. */
  light() {
    const { data, scene } = this;
    if (!data || !scene) return;
    const index = this.currentIndex(data, scene);
    const found = index === undefined ? null : lit(scene, index);
    drawLit(this.over, scene, this.view, this.colours, found?.links ?? new Map());
    this.stage.classList.toggle("vl-dimmed", found !== null);
    this.nodes.light(new Set([...(found?.items ?? [])].map((i) => scene.items[i].key)));
    const item = index === undefined ? undefined : scene.items[index];
    const id = item ? item.ids[0] : idOf(data, this.model.get("selected"));
    const label = item?.group || (id === undefined ? undefined : this.nodeStates(data).labels.get(id));
    this.side.update(data, this.ground(), id, label);
  }

  /** @param {Data} data @param {Scene} scene @returns {number | undefined} */
  currentIndex(data, scene) {
    if (this.pointed) return scene.indexOf.get(this.pointed);
    const active = this.active();
    if (active?.matches(":focus-visible")) return scene.indexOf.get(active.dataset.key ?? "");
    for (const name of ["hovered", "selected"]) {
      const id = idOf(data, this.model.get(name));
      if (id !== undefined && scene.itemOf.has(id)) return scene.itemOf.get(id);
    }
    return undefined;
  }

  /** The focused node. */
  active() {
    const root = /** @type {Document | ShadowRoot} */ (this.root.getRootNode());
    const element = /** @type {HTMLElement | null} */ (root.activeElement);
    return element?.classList.contains("vl-node") && this.stage.contains(element) ? element : null;
  }

  /** @param {Event} event @returns {Item | undefined} */
  itemAt(event) {
    const node = /** @type {Element} */ (event.target).closest?.(".vl-node");
    return this.item(/** @type {HTMLElement | null} */ (node)?.dataset.key);
  }

  /** @param {string | null | undefined} key @returns {Item | undefined} */
  item(key) {
    const index = key == null ? undefined : this.scene?.indexOf.get(key);
    return index === undefined ? undefined : this.scene?.items[index];
  }

  /** @param {Item} item @returns {NodeKey[]} */
  keys(item) {
    return item.ids.map((id) => this.keyOf(id));
  }

  /** @param {number} id @returns {NodeKey} */
  keyOf(id) {
    return keyOf(/** @type {Data} */ (this.data), id);
  }

  /** @param {string | null} key */
  point(key) {
    if (key === this.pointed || this.stage.classList.contains("vl-panning")) return;
    this.pointed = key;
    const item = this.item(key);
    this.hover(item ? this.keys(item)[0] : null);
    this.plan("light");
  }

  /** @param {NodeKey | null} node */
  hover(node) {
    if (!same(node, this.model.get("hovered"))) this.saveSoon({ hovered: node });
  }

  /** @param {FocusEvent} event */
  focused(event) {
    const item = this.itemAt(event);
    if (!item) return;
    this.nodes.makeCurrent(item.key);
    if (/** @type {Element} */ (event.target).matches(":focus-visible")) this.actions.reveal(item);
    this.plan("light");
    this.actions.update();
  }
}
