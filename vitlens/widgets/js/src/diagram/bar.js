// Sliders and buttons.

import { h, percent } from "../lib/dom.js";

const STEPS = 200;
const BEND = 3; // exponent of the scale: small shares take most of the slider
const MOST = { node_share: 0.5, edge_share: 0.25 };

/** @typedef {"nodes_per_layer" | "node_share" | "edge_share"} Rule */

/**
 * @param {(rule: Rule, value: number, done: boolean) => void} changed `done` when the slider is released
 */
export function createSliders(changed) {
  const sliders = [
    slider("nodes_per_layer", "Nodes per layer", changed),
    slider("node_share", "Node share ≥", changed),
    slider("edge_share", "Edge share ≥", changed),
  ];
  return {
    element: h("div", { class: "vl-diagram-sliders" }, ...sliders.map(({ element }) => element)),
    /** @param {Record<Rule, number>} rules @param {number} maxCount */
    update(rules, maxCount) {
      for (const { rule, update } of sliders) update(rules[rule], maxCount);
    },
  };
}

/** @param {Rule} rule @param {string} name @param {(rule: Rule, value: number, done: boolean) => void} changed */
function slider(rule, name, changed) {
  const value = h("output", { class: "vl-slider-value" });
  const input = h("input", {
    type: "range",
    min: rule === "nodes_per_layer" ? 1 : 0,
    max: STEPS,
    "data-rule": rule,
    oninput: () => report(false),
    onchange: () => report(true),
  });
  /** @param {boolean} done */
  const report = (done) => {
    const at = Number(input.value);
    changed(rule, rule === "nodes_per_layer" ? at : shareAt(at, MOST[rule]), done);
  };
  return {
    rule,
    element: h("label", { class: "vl-field" }, h("span", {}, name), input, value),
    /** @param {number} x @param {number} maxCount */
    update(x, maxCount) {
      const count = rule === "nodes_per_layer";
      if (count && input.max !== String(maxCount)) input.max = String(maxCount);
      const at = String(count ? Math.min(x, maxCount) : positionOf(x, MOST[rule]));
      if (input.value !== at) input.value = at;
      const text = count ? String(Math.min(x, maxCount)) : percent(x);
      if (value.textContent === text) return;
      value.textContent = text;
      input.setAttribute("aria-valuetext", text);
    },
  };
}

/** Shares have two digits, so that they can be typed in Python.
 * @param {number} at @param {number} most
 */
export const shareAt = (at, most) => Number((most * (at / STEPS) ** BEND).toPrecision(2));

/** @param {number} share @param {number} most */
export const positionOf = (share, most) =>
  Math.round(STEPS * (Math.min(share, most) / most) ** (1 / BEND));

/**
 * A row of buttons; `update` enables and shows them.
 * @template {string} Name
 * @param {Record<Name, { text: string, hint: string, press: () => void }>} actions
 */
export function createButtons(actions) {
  const buttons = Object.entries(actions).map(([name, any]) => {
    const { text, hint, press } = /** @type {{ text: string, hint: string, press: () => void }} */ (any);
    const label = /\w/.test(text) ? hint && `${text} (${hint})` : hint;
    return h(
      "button",
      { class: "vl-button", "data-action": name, title: hint, "aria-label": label || text, onclick: press },
      text,
    );
  });
  return {
    element: h("div", { class: "vl-diagram-buttons", role: "toolbar", "aria-label": "Diagram" }, ...buttons),
    /** @param {Partial<Record<Name, { off?: boolean, hidden?: boolean }>>} states */
    update(states) {
      for (const button of buttons) {
        const state = states[/** @type {Name} */ (button.dataset.action)];
        if (!state) continue;
        if (button.disabled !== Boolean(state.off)) button.disabled = Boolean(state.off);
        if (button.hidden !== Boolean(state.hidden)) button.hidden = Boolean(state.hidden);
      }
    },
  };
}
