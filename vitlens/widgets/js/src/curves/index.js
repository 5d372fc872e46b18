// Insertion and deletion curves, with a marker at the diagram's number of nodes per layer.

import { h, percent } from "../lib/dom.js";
import { listen, save } from "../lib/model.js";
import { readCurves } from "./data.js";
import { areasText, legendButtons } from "./legend.js";
import { createPanel } from "./panel.js";
import { countText, valuesText, valueTable } from "./readout.js";
import { nearestStep, shareScale } from "./scale.js";
import { lineStyles } from "./styles.js";
import "./style.css";

/** @typedef {import("../lib/types").Model} Model */
/** @typedef {import("./data.js").Direction} Direction */
/** @typedef {import("./panel.js").PanelState} PanelState */
/** @typedef {ReturnType<typeof createPanel>} Panel */

const WATCHED = ["curves", "curve_data", "axis", "direction", "hidden_methods"];
const TALLEST = 300; // pixels of a plot
const STACKED_BELOW = 620; // pixels: two panels side by side need more

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mount(model, el, signal) {
  const axisChoice = choice(model, "axis", "share of features", [
    ["log", "logarithmic"],
    ["linear", "linear"],
  ], signal);
  const directionChoice = choice(model, "direction", "curves", [
    ["insertion", "insertion"],
    ["deletion", "deletion"],
    ["both", "both"],
  ], signal);
  const legend = h("div", { class: "vl-curves-legend", role: "group", "aria-label": "methods" });
  const plots = h("div", { class: "vl-curves-plots" });
  const tip = h("div", { class: "vl-curves-tip", hidden: "" });
  const countLine = h("p", { class: "vl-curves-place" });
  const values = h("div", { class: "vl-curves-values" });
  const empty = h("p", { class: "vl-curves-empty" }, "There are no curves yet.");
  const bar = h("div", { class: "vl-curves-bar" }, directionChoice.element, axisChoice.element);
  const filled = h("div", {}, bar, legend, plots, countLine, values);
  const root = h("div", { class: "vl-curves" }, empty, filled);
  plots.append(tip);
  el.append(root);

  const panels = {
    insertion: createPanel("insertion"),
    deletion: createPanel("deletion"),
  };
  /** @type {PanelState | null} */
  let state = null;

  const shown = () => (state ? state.directions.map((direction) => panels[direction]) : []);
  /** A narrow host may set a smaller height. */
  const tallest = () =>
    parseFloat(getComputedStyle(root).getPropertyValue("--vl-curves-most")) || TALLEST;
  const size = () => state?.data.info.dictionary_size ?? 1;
  /** The diagram, where there is one, cannot show more. */
  const most = () => Math.min(size(), model.get("graph_info")?.max_count ?? Infinity);

  function draw() {
    const data = readCurves(model.get("curves"), model.get("curve_data"));
    empty.hidden = data !== null;
    filled.hidden = data === null;
    if (!data) return;
    const both = model.get("direction") === "both";
    /** @type {Direction[]} */
    const directions = both ? ["insertion", "deletion"] : [model.get("direction")];
    const axis = model.get("axis");
    const hidden = new Set(model.get("hidden_methods"));
    const room = Math.max(root.clientWidth, 240);
    const width = both && room >= STACKED_BELOW ? (room - 12) / 2 : room;
    state = {
      data,
      directions,
      axis,
      scale: shareScale(axis, data.info.q.find((share) => share > 0) ?? 1),
      styles: lineStyles(data.info.methods),
      isShown: (method) => !hidden.has(method),
      width,
      height: Math.round(Math.min(Math.max(width * 0.62, 190), tallest())),
    };
    axisChoice.update();
    directionChoice.update();
    const wanted = shown().map((panel) => panel.element);
    const there = [...plots.children].filter((child) => child !== tip);
    if (wanted.length !== there.length || wanted.some((e, i) => e !== there[i])) {
      for (const child of there) child.remove();
      plots.prepend(...wanted);
    }
    for (const panel of shown()) panel.draw(state);
    drawLegend(state);
    drawPoint();
  }

  /** @param {PanelState} s */
  function drawLegend(s) {
    const focused = legend.querySelector(":focus")?.getAttribute("data-method");
    legend.replaceChildren(
      ...legendButtons(s.data, s.styles, s.directions, s.axis, s.isShown, (method) => {
        const hidden = model.get("hidden_methods");
        const rest = hidden.filter((/** @type {string} */ other) => other !== method);
        save(model, {
          hidden_methods: rest.length < hidden.length ? rest : [...hidden, method],
        });
      }),
      h("span", { class: "vl-curves-area" }, areasText(s.directions)),
    );
    if (!focused) return;
    const again = /** @type {HTMLElement | null} */ (
      legend.querySelector(`[data-method="${CSS.escape(focused)}"]`)
    );
    again?.focus();
  }

  function drawPoint() {
    if (!state) return;
    const count = Math.min(model.get("nodes_per_layer"), size());
    const share = count / size();
    for (const [i, panel] of shown().entries()) {
      panel.movePoint(share);
      for (const [name, value] of Object.entries({
        tabindex: i === 0 ? 0 : -1,
        "aria-valuemax": most(),
        "aria-valuenow": count,
        "aria-valuetext": `${countText(state, count)}. ${valuesText(state, share)}`,
      })) {
        panel.handle.setAttribute(name, `${value}`);
      }
    }
    countLine.textContent = `At the marker: ${countText(state, count)}`;
    values.replaceChildren(valueTable(state, share, state.directions));
  }

  /** @param {number} count */
  function setCount(count) {
    const next = Math.min(Math.max(Math.round(count), 1), most());
    if (next !== model.get("nodes_per_layer")) save(model, { nodes_per_layer: next });
  }

  /** @param {Panel} panel */
  function connect(panel) {
    for (const [name, value] of Object.entries({
      role: "slider",
      "aria-label": "Nodes per layer",
      "aria-valuemin": 1,
      "data-lm-suppress-shortcuts": "true",
    })) {
      panel.handle.setAttribute(name, `${value}`);
    }
    /** @param {PointerEvent} event */
    const drag = (event) => {
      if (state) setCount(state.scale.share(panel.position(event)) * size());
    };
    const { element } = panel;
    element.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      element.setPointerCapture(event.pointerId);
      panel.handle.focus({ preventScroll: true });
      drag(event);
      event.preventDefault();
    }, { signal });
    element.addEventListener("pointermove", (event) => {
      if (element.hasPointerCapture(event.pointerId)) drag(event);
      point(panel, event);
    }, { signal });
    element.addEventListener("pointerleave", () => unpoint(), { signal });
    panel.handle.addEventListener("keydown", (event) => onKey(event), { signal });
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    if (!state) return;
    const count = model.get("nodes_per_layer");
    const counts = state.data.info.counts.filter((n) => n >= 1);
    const larger = counts.find((n) => n > count) ?? most();
    const smaller = counts.filter((n) => n < count).at(-1) ?? 1;
    /** @type {Record<string, number>} */
    const next = {
      ArrowRight: count + 1,
      ArrowUp: count + 1,
      ArrowLeft: count - 1,
      ArrowDown: count - 1,
      PageUp: larger,
      PageDown: smaller,
      Home: 1,
      End: most(),
    };
    if (!(event.key in next)) return;
    event.preventDefault();
    event.stopPropagation();
    setCount(next[event.key]);
  }

  /** @param {Panel} panel @param {PointerEvent} event */
  function point(panel, event) {
    if (!state) return;
    const { q, counts } = state.data.info;
    const step = nearestStep(q, panel.position(event), state.scale);
    for (const each of shown()) each.movePointer(step);
    const text = `${percent(q[step])}: ${counts[step]} per layer`;
    tip.replaceChildren(h("p", {}, text), valueTable(state, q[step], [panel.direction]));
    tip.hidden = false;
    const left = panel.element.getBoundingClientRect().left - plots.getBoundingClientRect().left;
    const at = left + panel.x(q[step]);
    // Away from the curves: those of insertion rise to the right, those of deletion fall.
    const before = at - 14 - tip.offsetWidth;
    const after = at + 14;
    const fits = after + tip.offsetWidth <= plots.clientWidth;
    const leftIsFree = before >= left && (panel.direction === "insertion" || !fits);
    const tipLeft = leftIsFree || !fits ? Math.max(before, 0) : after;
    const top = panel.element.getBoundingClientRect().top - plots.getBoundingClientRect().top;
    tip.style.transform = `translate(${tipLeft}px, ${top + 30}px)`;
  }

  function unpoint() {
    tip.hidden = true;
    for (const panel of shown()) panel.movePointer(null);
  }

  connect(panels.insertion);
  connect(panels.deletion);
  listen(model, WATCHED, draw, signal);
  listen(model, ["nodes_per_layer", "graph_info"], drawPoint, signal);
  let width = 0;
  const observer = new ResizeObserver(() => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    draw();
  });
  observer.observe(root);
  signal.addEventListener("abort", () => {
    observer.disconnect();
    root.remove();
  });
  draw();
}

/**
 * Buttons for a trait with few values; one is pressed.
 *
 * @param {Model} model
 * @param {string} trait
 * @param {string} label
 * @param {[string, string][]} options value and text
 * @param {AbortSignal} signal
 */
function choice(model, trait, label, options, signal) {
  const element = h("div", { class: "vl-curves-choice", role: "group", "aria-label": label });
  const buttons = options.map(([value, text]) => {
    const button = h(
      "button",
      { type: "button", class: "vl-button", "data-value": value },
      text,
    );
    button.addEventListener("click", () => save(model, { [trait]: value }), { signal });
    return button;
  });
  element.append(...buttons);
  return {
    element,
    update: () => {
      for (const [i, button] of buttons.entries()) {
        button.setAttribute("aria-pressed", `${options[i][0] === model.get(trait)}`);
      }
    },
  };
}
