// The map of features: its state and drawing.

/** @import { Model } from "../lib/types" */
/** @import { Colours } from "./colours.js" */
/** @import { Data } from "./data.js" */
/** @import { View } from "./view.js" */
import { labelOf } from "../card/name.js";
import { fill, h } from "../lib/dom.js";
import { listen, same } from "../lib/model.js";
import { createActions } from "./actions.js";
import { coloursOf } from "./colours.js";
import { keyOf, pointOf, readMap } from "./data.js";
import { handleGestures } from "./gestures.js";
import { createGrid } from "./grid.js";
import { handleKey } from "./keys.js";
import { drawOver } from "./overlay.js";
import { createPainter } from "./paint.js";
import { createChosen, createTools, shownLayers } from "./tools.js";
import { fitted, revealing, zoomed } from "./view.js";
import { describe } from "./text.js";

const KEYS =
  "Arrow keys move between points. Enter selects. Space adds or removes a point. O opens a circle " +
  "around the point: [ and ] resize it, Enter chooses the points inside, Shift-Enter adds them. " +
  "L turns on the mouse lasso. Plus and minus zoom, 0 shows all. Escape clears the selection.";

export class FeatureMap {
  /** @param {Model} model @param {HTMLElement} el @param {AbortSignal} signal */
  constructor(model, el, signal) {
    this.model = model;
    this.signal = signal;
    this.points = h("canvas", { class: "vl-map-canvas", role: "presentation" });
    this.over = h("canvas", { class: "vl-map-canvas", role: "presentation" });
    this.tip = h("div", { class: "vl-map-tip", hidden: true });
    this.live = h("div", { class: "vl-hint", role: "status", "aria-live": "polite" });
    this.stage = h(
      "div",
      {
        class: "vl-map-stage",
        tabindex: 0,
        role: "application",
        "aria-label": "Map of features",
        "aria-description": KEYS,
      },
      this.points,
      this.over,
      this.tip,
    );
    this.tools = createTools(model, {
      lasso: (on) => this.actions.setLasso(on),
      zoom: (factor) => this.zoom(factor),
      fit: () => this.fit(),
      chooseAll: () => this.actions.chooseAll(),
    });
    this.chosen = createChosen(model);
    this.unreadable = h("div", { class: "vl-unreadable" });
    this.empty = h("p", { class: "vl-muted" }, "There is no map: this lens has no atlas with a map.");
    this.body = h(
      "div",
      { class: "vl-map-body" },
      this.tools.element,
      this.tools.layers,
      this.unreadable,
      this.stage,
      h("p", { class: "vl-muted vl-map-note" }, "Nearby points have similar decoder rows; distances between clusters and cluster density mean little. Keys: arrows, Enter, Space, O, L."),
      this.chosen.element,
      this.live,
    );
    this.root = h("div", { class: "vl-map" }, this.empty, this.body);
    el.append(this.root);
    this.paint = createPainter(this.points);
    /** @type {Data | null} */
    this.data = null;
    /** @type {ReturnType<typeof createGrid> | null} */
    this.grid = null;
    /** @type {Colours | null} */
    this.colours = null;
    this.shown = new Uint8Array(0);
    /** @type {Uint8Array | null} */
    this.isChosen = null; // 1 for chosen points
    /** @type {View} */
    this.view = fitted(600, 400);
    this.isFitted = true;
    this.cursor = -1; // the point that keys act on
    /** @type {number[]} */
    this.lasso = [];
    this.circle = 0; // radius in CSS pixels, 0 for none
    this.frame = 0;
    /** @type {Set<string>} */
    this.plans = new Set();
    this.actions = createActions(this);
  }

  start() {
    const { model, signal, stage, actions } = this;
    const again = (/** @type {string[]} */ ...what) => () => this.plan(...what);
    listen(model, ["map", "map_points", "map_columns", "map_kinds"], again("data"), signal);
    listen(model, ["colour_by"], again("colours"), signal);
    listen(model, ["map_layers"], again("layers"), signal);
    listen(model, ["chosen"], again("chosen"), signal);
    listen(model, ["labels"], () => this.chosen.update(), signal);
    listen(model, ["hovered"], again("over"), signal);
    listen(model, ["selected"], () => this.data && this.reveal(pointOf(this.data, model.get("selected"))), signal);
    handleGestures(stage, signal, {
      view: () => this.view,
      move: (view) => this.move(view),
      zoom: (factor, x, y) => this.zoom(factor, x, y),
      hover: actions.hover,
      leave: actions.leave,
      click: actions.click,
      lassoing: actions.lassoing,
      draw: actions.drawLasso,
      close: actions.closeLasso,
      wheels: (event) => event.ctrlKey || event.metaKey || stage.matches(":focus-within"),
    });
    stage.addEventListener("keydown", (event) => handleKey(event, this), { signal });
    stage.addEventListener("blur", actions.leave, { signal });
    const sized = new ResizeObserver(() => this.plan("size"));
    sized.observe(stage);
    const root = this.root.closest(".vl-root") ?? this.root;
    root.addEventListener("vl-theme", again("colours"), { signal });
    signal.addEventListener("abort", () => {
      sized.disconnect();
      cancelAnimationFrame(this.frame);
      this.root.remove();
    });
    this.plan("data", "size");
  }

  /** Plans work for the next frame. @param {string[]} what */
  plan(...what) {
    for (const one of what) this.plans.add(one);
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = 0;
    const plans = this.plans;
    this.plans = new Set();
    if (plans.has("data")) this.read();
    if (!this.data) return;
    if (plans.has("size")) this.resize();
    const all = plans.has("data");
    if (all || plans.has("colours")) this.colour();
    if (all || plans.has("layers")) this.show();
    if (all || plans.has("layers") || plans.has("colours")) this.describeTools();
    if (all || plans.has("chosen")) this.markChosen();
    if (plans.size > 1 || !plans.has("over")) this.drawPoints();
    this.drawOver();
  }

  read() {
    this.data = readMap(this.model);
    this.empty.hidden = Boolean(this.data);
    this.body.hidden = !this.data;
    if (this.data) this.grid = createGrid(this.data.x, this.data.y);
    /** @type {string[]} */
    const unreadable = this.model.get("map")?.unreadable ?? [];
    fill(this.unreadable, unreadable.map((text) => h("p", {}, text)));
    this.unreadable.hidden = !unreadable.length;
    this.cursor = -1;
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.stage;
    if (!width || !height) return;
    for (const canvas of [this.points, this.over]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    if (this.isFitted) this.view = fitted(width, height);
  }

  get ratio() {
    return Math.min(2, globalThis.devicePixelRatio || 1);
  }

  get dark() {
    return Boolean(this.root.closest(".vl-dark"));
  }

  /** The scale at which all fits. */
  get whole() {
    return fitted(this.stage.clientWidth, this.stage.clientHeight).scale;
  }

  colour() {
    const data = /** @type {Data} */ (this.data);
    this.colours = coloursOf(data, this.model.get("colour_by"), this.dark);
  }

  show() {
    const data = /** @type {Data} */ (this.data);
    const layers = new Set(shownLayers(this.model, data.layerNumbers));
    this.shown = data.layers.length ? Uint8Array.from(data.layers, (i) => (layers.has(data.layerNumbers[i]) ? 1 : 0)) : new Uint8Array(0);
    if (this.cursor >= 0 && !this.shown[this.cursor]) this.cursor = -1;
  }

  markChosen() {
    const data = /** @type {Data} */ (this.data);
    const chosen = this.model.get("chosen") ?? [];
    this.isChosen = chosen.length ? new Uint8Array(data.n) : null;
    for (const key of chosen) {
      const point = pointOf(data, key);
      if (this.isChosen && point >= 0) this.isChosen[point] = 1;
    }
    this.chosen.update();
  }

  describeTools() {
    if (this.colours) this.tools.update(this.colours, this.dark);
  }

  drawPoints() {
    const { data, colours, ratio, view } = this;
    if (!data || !colours) return;
    const [r, g, b] = this.ground();
    // Larger when zoomed in.
    const size = Math.min(5, (data.n > 20_000 ? 1.6 : 2.4) * (view.scale / this.whole) ** 0.35);
    this.paint(
      data,
      { scale: view.scale * ratio, x: view.x * ratio, y: view.y * ratio },
      { colours: colours.of, shown: this.shown, chosen: this.isChosen, ground: [r, g, b], radius: Math.round(size * ratio * 4) / 4 },
    );
  }

  /** The background colour. */
  ground() {
    const text = getComputedStyle(this.stage).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
    const [r, g, b] = text.length >= 3 ? text : this.dark ? [27, 29, 33] : [255, 255, 255];
    return [r, g, b];
  }

  drawOver() {
    const { data, model } = this;
    if (!data) return;
    const style = getComputedStyle(this.stage);
    /** @type {import("./overlay.js").Ring[]} */
    const rings = [];
    const ring = (/** @type {number} */ point, /** @type {"selected" | "hovered" | "cursor"} */ kind) => {
      if (point < 0 || !this.shown[point]) return;
      const { x, y } = this.at(point);
      rings.push({ x, y, kind });
    };
    const hovered = pointOf(data, model.get("hovered"));
    ring(pointOf(data, model.get("selected")), "selected");
    ring(hovered, "hovered");
    if (this.stage.matches(":focus-visible")) ring(this.cursor, "cursor");
    const centre = this.cursor >= 0 && this.circle ? this.at(this.cursor) : null;
    drawOver(this.over, this.ratio, {
      rings,
      lasso: this.lasso,
      circle: centre && { ...centre, radius: this.circle },
      ink: {
        line: style.color,
        ground: style.backgroundColor,
        accent: style.getPropertyValue("--vl-accent"),
      },
    });
    this.stage.dataset.hovered = hovered >= 0 ? keyOf(data, hovered).join("/") : "";
    const described = hovered >= 0 ? hovered : this.circle ? this.cursor : -1;
    this.tip.hidden = described < 0 || !this.shown[described];
    if (this.tip.hidden) return;
    this.tip.textContent = this.textOf(described);
    const { x, y } = this.at(described);
    const room = this.stage.clientWidth - this.tip.offsetWidth - 4;
    this.tip.style.left = `${Math.max(4, Math.min(room, x + 12))}px`;
    this.tip.style.top = `${y > 60 ? y - 12 - this.tip.offsetHeight : y + 14}px`;
  }

  /** The position of a point on the stage. @param {number} point */
  at(point) {
    const { x, y } = /** @type {Data} */ (this.data);
    const { view } = this;
    return { x: view.x + x[point] * view.scale, y: view.y + y[point] * view.scale };
  }

  /** @param {number} point */
  textOf(point) {
    const data = /** @type {Data} */ (this.data);
    return describe(data, point, labelOf(this.model, keyOf(data, point)), this.model.get("colour_by"));
  }

  /** @param {View} view */
  move(view) {
    this.view = view;
    this.isFitted = false;
    this.plan("view");
  }

  /** @param {number} factor @param {number} [x] @param {number} [y] */
  zoom(factor, x = this.stage.clientWidth / 2, y = this.stage.clientHeight / 2) {
    this.move(zoomed(this.view, factor, x, y, this.whole));
  }

  fit() {
    this.view = fitted(this.stage.clientWidth, this.stage.clientHeight);
    this.isFitted = true;
    this.plan("view");
  }

  /** @param {number} point */
  reveal(point) {
    const { data, stage } = this;
    if (data && point >= 0) {
      const next = revealing(this.view, data.x[point], data.y[point], stage.clientWidth, stage.clientHeight);
      if (!same(next, this.view)) this.move(next);
    }
    this.plan("over");
  }
}
