// Groups with their accuracies, candidate features to tick, and the effect of ticks.

/** @import { Mount, NodeKey } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { h } from "../lib/dom.js";
import { listen, same } from "../lib/model.js";
import { showError } from "../lib/notice.js";
import { cardList } from "./cards.js";
import { curvePlot } from "./curve.js";
import { groupTable } from "./groups.js";
import { history } from "./history.js";
import "./style.css";
import { summary, summaryLine } from "./summary.js";
import { chosen, has, idOf, request, step, verb } from "./request.js";

const LONG = 2 ** 31 - 1; // a kernel may be busy for hours, and then answer

/** @type {Mount} */
export function mount(model, el, signal) {
  let isLive = true;
  const button = (/** @type {string} */ text, /** @type {string} */ title, /** @type {() => void} */ onclick) =>
    h("button", { class: "vl-button", title, onclick }, text);
  const undo = button("Undo", "Ctrl+Z", () => step(model, "undo"));
  const redo = button("Redo", "Ctrl+Shift+Z", () => step(model, "redo"));
  const reset = button("Reset", "Remove no features", () => request(model, []));
  const save = button("Export choice", "A file for DebiasedModel.load", download);
  const add = button("", "Add a card for the selected feature", () => {
    const node = /** @type {NodeKey} */ (model.get("selected"));
    ask(model, "add", { node }).catch((error) => showError(model, error));
  });
  const info = h("span", { class: "vl-muted" });
  const saved = h(
    "p",
    { class: "vl-muted", role: "note", hidden: true },
    "Ticking needs a running kernel: this page shows the saved choice.",
  );
  const sentences = summary(model);
  const table = groupTable(model);
  const curve = curvePlot(model, signal);
  const cards = cardList(model, () => isLive);
  const past = history(model);
  const heading = h("h3", { class: "vl-title" });
  // Next to the ticks, where the panel is narrow and the table is not visible.
  const brief = h("p", { class: "vl-debias-brief", "aria-hidden": "true" });
  const part = (/** @type {string} */ name, /** @type {HTMLElement} */ inner) =>
    h("section", { "aria-label": name }, h("h3", { class: "vl-title" }, name), inner);
  const root = h(
    "section",
    { class: "vl-debias-panel", "aria-label": "Debiasing" },
    h("div", { class: "vl-toolbar" }, h("h2", { class: "vl-title vl-debias-title" }, "Debias"), undo, redo, reset, save, info),
    sentences.element,
    h(
      "div",
      { class: "vl-debias-body" },
      h(
        "div",
        { class: "vl-debias-figures" },
        part("Accuracy by group", table.element),
        part("Trade-off", curve.element),
        past.element,
      ),
      h(
        "section",
        { "aria-label": "Candidate features" },
        h("div", { class: "vl-toolbar vl-debias-heading" }, heading, h("span", { class: "vl-needs-kernel" }, add)),
        brief,
        saved,
        cards.element,
      ),
    ),
  );
  root.addEventListener("keydown", onKey, { signal });
  el.append(root);

  async function download() {
    try {
      const { value } = await ask(model, "export");
      const url = URL.createObjectURL(new Blob([value], { type: "application/json" }));
      h("a", { href: url, download: "debiased.json" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    } catch (error) {
      showError(model, error);
    }
  }

  /** @param {KeyboardEvent} event */
  function onKey(event) {
    const key = event.key.toLowerCase();
    if (!(event.ctrlKey || event.metaKey) || !["z", "y"].includes(key)) return;
    event.preventDefault();
    event.stopPropagation();
    if (isLive) step(model, key === "y" || event.shiftKey ? "redo" : "undo");
  }

  function drawTools() {
    const now = chosen(model);
    const index = model.get("choice");
    const { n_images, name, to } = model.get("debias") ?? {};
    const selected = /** @type {NodeKey | null} */ (model.get("selected"));
    const known = (model.get("debias_cards") ?? []).map((/** @type {any} */ c) => c.node);
    undo.disabled = !isLive || index <= 0;
    redo.disabled = !isLive || index >= (model.get("choices") ?? []).length - 1;
    reset.disabled = !isLive || !now.length;
    info.textContent = n_images ? `${n_images} ${name}; ticked features are ${verb(model).done}, to ${to === "zero" ? "zero" : "their baseline"}` : "";
    add.hidden = !selected || selected[1] < 0 || has(known, selected);
    add.textContent = selected ? `Add ${idOf(selected)}, the selected feature` : "";
    heading.textContent = `Candidate features: ${now.length} of ${known.length} ticked`;
  }

  function drawFigures() {
    sentences.update();
    table.update();
    curve.update();
    brief.textContent = summaryLine(model);
    root.classList.toggle("vl-debias-pending", !same(model.get("report")?.chosen, chosen(model)));
  }

  listen(model, ["debias_cards", "debias_heats", "debias"], cards.build, signal);
  listen(model, ["debias_strip"], cards.loadExamples, signal);
  listen(model, ["chosen", "selected", "labels", "debias_cards"], cards.update, signal);
  listen(model, ["selected"], cards.reveal, signal);
  listen(model, ["chosen", "choice", "choices", "selected", "debias", "debias_cards"], drawTools, signal);
  listen(model, ["chosen", "report", "interim", "trade_off", "debias"], drawFigures, signal);
  listen(model, ["choices", "choice", "labels"], past.update, signal);
  cards.build();
  cards.loadExamples();
  drawTools();
  drawFigures();
  past.update();
  ask(model, "ping", {}, [], { wait: LONG }).catch(() => {
    isLive = false;
    saved.hidden = false;
    cards.update();
    drawTools();
  });
}
