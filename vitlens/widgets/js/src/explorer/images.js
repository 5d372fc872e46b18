// The choice of an image: a sample, an upload, a path, or a dropped file.

/** @import { Model } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { fill, h } from "../lib/dom.js";
import { drawGround, loadStrip } from "../lib/heat.js";
import { listen, save } from "../lib/model.js";
import { showError } from "../lib/notice.js";
import { sendable } from "./upload.js";

const SIZE = 44; // CSS pixels of a thumbnail

/** @typedef {{ name: string, label: string }} Sample */

/**
 * Thumbnails of the samples, and controls to open another image.
 * @param {Model} model
 * @param {HTMLElement} el the whole Explorer, on which a file may be dropped
 * @param {AbortSignal} signal
 */
export function imageChoice(model, el, signal) {
  const strip = h("div", {
    class: "vl-x-samples",
    role: "radiogroup",
    "aria-label": "Sample image",
  });
  const file = h("input", { type: "file", accept: "image/*", class: "vl-hint", tabindex: -1 });
  const upload = h(
    "button",
    {
      type: "button",
      class: "vl-button",
      title: "or drop an image file anywhere on the Explorer",
      onclick: () => file.click(),
    },
    "Upload…",
  );
  const path = h("input", {
    class: "vl-input vl-x-path",
    placeholder: "path of an image",
    "aria-label": "Path of an image on the machine where Python runs",
  });
  const form = h("form", { class: "vl-x-open" }, path, h("button", { class: "vl-button" }, "Open"));
  const name = h("span", { class: "vl-muted vl-x-name" });

  /** @type {HTMLButtonElement[]} */
  let buttons = [];

  async function drawSamples() {
    /** @type {Sample[]} */
    const samples = model.get("samples") ?? [];
    const images = await loadStrip(model.get("sample_strip")).catch(() => null);
    if (signal.aborted) return;
    buttons = samples.map((sample, i) => {
      const canvas = h("canvas", { width: 2 * SIZE, height: 2 * SIZE, "aria-hidden": "true" });
      const g = canvas.getContext("2d");
      if (g) drawGround(g, { strip: images, index: i, count: samples.length, pale: false });
      const text = sample.label ? `${sample.name} (${sample.label})` : sample.name;
      return h(
        "button",
        {
          type: "button",
          role: "radio",
          class: "vl-x-sample",
          title: text,
          "aria-label": text,
          "data-sample": i,
          onclick: () => save(model, { image_choice: i }),
        },
        canvas,
      );
    });
    fill(strip, buttons);
    strip.hidden = !samples.length;
    updateChoice();
  }

  function updateChoice() {
    const chosen = model.get("image_choice");
    for (const [i, button] of buttons.entries()) {
      button.setAttribute("aria-checked", `${i === chosen}`);
      button.tabIndex = i === (chosen ?? 0) ? 0 : -1;
    }
    name.textContent = chosen === null ? model.get("image_name") || "" : "";
  }

  strip.addEventListener("keydown", (event) => {
    const at = buttons.findIndex((button) => button.contains(/** @type {Node} */ (event.target)));
    /** @type {Record<string, number>} */
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: buttons.length - 1 };
    if (!(event.key in next)) return;
    event.preventDefault();
    event.stopPropagation();
    // Only Enter chooses: each choice starts a computation.
    buttons[(next[event.key] + buttons.length) % buttons.length]?.focus();
  }, { signal });

  /** @param {File | undefined | null} chosen */
  async function send(chosen) {
    if (!chosen) return;
    try {
      await ask(model, "upload", { name: chosen.name }, [await sendable(chosen)]);
    } catch (error) {
      showError(model, error);
    }
  }

  file.addEventListener("change", () => {
    send(file.files?.[0]);
    file.value = "";
  }, { signal });
  /** @param {Event} event */
  function open(event) {
    event.preventDefault();
    event.stopPropagation();
    if (!path.value.trim()) return;
    ask(model, "open_path", { path: path.value }).catch((error) => showError(model, error));
  }
  form.addEventListener("submit", open, { signal });
  // JupyterLab keeps Enter from submitting a form.
  path.addEventListener("keydown", (event) => event.key === "Enter" && open(event), { signal });
  /** @param {DragEvent} event */
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  /** @param {DragEvent} event */
  function over(event) {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    el.classList.add("vl-x-dropping");
  }
  el.addEventListener("dragenter", over, { signal });
  el.addEventListener("dragover", over, { signal });
  el.addEventListener("dragleave", (event) => {
    if (!el.contains(/** @type {Node | null} */ (event.relatedTarget))) {
      el.classList.remove("vl-x-dropping");
    }
  }, { signal });
  el.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    el.classList.remove("vl-x-dropping");
    send(event.dataTransfer?.files[0]);
  }, { signal });

  listen(model, ["samples", "sample_strip"], drawSamples, signal);
  listen(model, ["image_choice", "image_name"], updateChoice, signal);
  drawSamples();
  return h("div", { class: "vl-x-images" }, strip, upload, file, form, name);
}
