// The Explorer: every component on one model, in one resizable layout.

/** @import { Model } from "../lib/types" */
import { mount as mountAblation } from "../ablation/index.js";
import { mount as mountBrowser } from "../browser/index.js";
import { mount as mountCard } from "../card/index.js";
import { mount as mountDiagram } from "../diagram/index.js";
import { ask } from "../lib/ask.js";
import { h } from "../lib/dom.js";
import { watchKernel } from "../lib/kernel.js";
import { listen } from "../lib/model.js";
import { mountNotice, showError } from "../lib/notice.js";
import { mount as mountMap } from "../map/index.js";
import { healthLine, mountHealth } from "./health.js";
import { mountHeatView } from "./heatview.js";
import { imageChoice } from "./images.js";
import { mountMeasured } from "./measure.js";
import { split } from "./split.js";
import "./style.css";
import { tabbed } from "./tabs.js";
import { predictionLine, targetChoice } from "./target.js";

const WIDE = 740; // pixels from which the card has its own pane
const STACKED = 640; // pixels below which all panes are stacked

/**
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
export function mount(model, el, signal) {
  const heat = pane("vl-x-heat", "Heatmap");
  const diagram = pane("vl-x-diagram", "Circuit");
  const card = panel("vl-x-card");
  const cardHome = pane("vl-x-card-home", "Feature");
  const tabs = tabbed(
    [
      tab("card", "Feature", card, mountCard),
      tab("browser", "All features", panel(), mountBrowser),
      tab("map", "Map", panel(), mountMap),
      tab("ablation", "Ablate", panel(), mountAblation),
      tab("curves", "Curves", panel(), mountMeasured),
      tab("health", "Layer health", panel(), mountHealth),
    ],
    "More about this image",
    signal,
  );

  const left = split("column", 58, "Heatmap and feature card", heat, cardHome, signal);
  const right = split("column", 66, "Circuit and tabs", diagram, tabs.element, signal);
  const main = split("row", 34, "Image and circuit", left.element, right.element, signal);
  const choices = h(
    "div",
    { class: "vl-x-choices vl-needs-kernel" },
    imageChoice(model, el, signal),
    targetChoice(model, signal),
  );
  const facts = h("div", { class: "vl-x-facts" }, predictionLine(model, signal));
  mountNotice(model, facts, signal);
  facts.append(healthLine(model, () => tabs.show("health"), signal));
  el.append(choices, facts, main.element);
  main.element.classList.add("vl-x-main");

  /** @param {number} width */
  function arrange(width) {
    const mode = width < STACKED ? "stacked" : width < WIDE ? "medium" : "wide";
    if (el.dataset.layout === mode) return;
    el.dataset.layout = mode;
    left.element.classList.toggle("vl-x-one", mode !== "wide");
    cardHome.hidden = mode !== "wide";
    left.bar.hidden = mode !== "wide";
    tabs.move("card", mode === "wide" ? cardHome : null);
  }

  const setHeight = () => el.style.setProperty("--vl-x-height", `${model.get("height")}px`);
  listen(model, ["height"], setHeight, signal);
  setHeight();
  arrange(el.clientWidth || WIDE);
  const observer = new ResizeObserver(() => el.clientWidth && arrange(el.clientWidth));
  observer.observe(el);
  signal.addEventListener("abort", () => observer.disconnect(), { once: true });

  mountHeatView(model, heat, signal);
  mountDiagram(model, diagram, signal);
  waiting(model, diagram, signal);
  watchKernel(model, el, signal);

  /**
   * @param {string} name
   * @param {string} title
   * @param {HTMLElement} element
   * @param {import("../lib/types").Mount} build
   */
  function tab(name, title, element, build) {
    return { name, title, panel: element, build: () => build(model, element, signal) };
  }
}

/** @param {string} className @param {string} label */
const pane = (className, label) =>
  h("section", { class: `vl-x-pane ${className}`, "aria-label": label });

/** @param {string} [className] */
const panel = (className = "") => h("div", { class: `vl-x-panel ${className}` });

/**
 * What is shown until there is a circuit.
 * @param {Model} model
 * @param {HTMLElement} el
 * @param {AbortSignal} signal
 */
function waiting(model, el, signal) {
  const text = h("p", { class: "vl-muted" });
  const again = h(
    "button",
    {
      type: "button",
      class: "vl-button vl-needs-kernel",
      onclick: () => ask(model, "compute").catch((error) => showError(model, error)),
    },
    "Compute the circuit",
  );
  const box = h("div", { class: "vl-x-waiting" }, text, again);
  el.append(box);
  const update = () => {
    const has = Boolean(model.get("graph_info")?.counts);
    const busy = model.get("progress")?.done !== undefined;
    el.classList.toggle("vl-x-empty", !has);
    const known = Boolean(model.get("explained")?.name);
    box.hidden = has;
    again.hidden = busy || !known;
    if (busy) text.textContent = "Computing the circuit…";
    else text.textContent = known ? "There is no circuit yet." : "Choose an image.";
  };
  listen(model, ["graph_info", "progress", "explained"], update, signal);
  update();
}
