// The settings of a heatmap.

/** @import { Model } from "../lib/types" */
import { field, h } from "../lib/dom.js";
import { listen, save, slowSave } from "../lib/model.js";

/**
 * @param {Model} model
 * @param {AbortSignal} signal
 */
export function toolbar(model, signal) {
  const slow = slowSave(model);
  const show = choice(model, "show", { importance: "Importance", activation: "Activation" });
  const showField = field("Show", show);
  showField.classList.add("vl-needs-kernel");
  const opacity = h("input", {
    type: "range",
    min: 0,
    max: 1,
    step: 0.01,
    oninput: () => slow({ opacity: Number(opacity.value) }),
  });
  const colours = choice(model, "colours", { heat: "Blue–orange", cividis: "Cividis" });
  const coloursField = field("Colours", colours);
  const smooth = box(model, "smooth");
  const lines = box(model, "show_grid");
  const grey = box(model, "grey");

  const update = () => {
    show.value = model.get("show");
    showField.hidden = !model.get("layers")?.length;
    opacity.value = String(model.get("opacity"));
    colours.value = model.get("colours");
    coloursField.hidden = model.get("signed");
    smooth.checked = model.get("smooth");
    lines.checked = model.get("show_grid");
    grey.checked = model.get("grey");
  };
  const names = ["show", "layers", "opacity", "colours", "signed", "smooth", "show_grid", "grey"];
  listen(model, names, update, signal);
  update();
  return h(
    "div",
    { class: "vl-toolbar vl-heat-toolbar" },
    showField,
    field("Opacity", opacity),
    field("Smooth", smooth),
    field("Patch grid", lines),
    field("Grey image", grey),
    coloursField,
  );
}

/** @param {Model} model @param {string} name */
function box(model, name) {
  const input = h("input", {
    type: "checkbox",
    onchange: () => save(model, { [name]: input.checked }),
  });
  return input;
}

/** @param {Model} model @param {string} name @param {Record<string, string>} options */
function choice(model, name, options) {
  const select = h(
    "select",
    { class: "vl-select", onchange: () => save(model, { [name]: select.value }) },
    Object.entries(options).map(([value, text]) => h("option", { value }, text)),
  );
  return select;
}
