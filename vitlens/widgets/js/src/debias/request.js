// Requests: the features that are removed, and moves in the history.

/** @import { Model, NodeKey } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { counted } from "../lib/dom.js";
import { same } from "../lib/model.js";
import { showError } from "../lib/notice.js";
import { requestTrait } from "../lib/request.js";

/** @param {Model} model @returns {NodeKey[]} */
export const chosen = (model) => model.get("chosen") ?? [];

/** @param {NodeKey[]} list @param {NodeKey | null} node */
export const has = (list, node) => list.some((key) => same(key, node));

/** Sets the features that are removed; Python answers with `report`.
 * @param {Model} model @param {NodeKey[]} wanted
 */
export function request(model, wanted) {
  requestTrait(model, "chosen", wanted, () => model.get("report")?.chosen ?? []);
}

/** @param {Model} model @param {NodeKey} node */
export function toggle(model, node) {
  const others = chosen(model).filter((key) => !same(key, node));
  request(model, others.length < chosen(model).length ? others : [...others, node]);
}

/** Restores a choice of the history.
 * @param {Model} model @param {number} index
 */
export function goTo(model, index) {
  ask(model, "go_to", { index }).catch((error) => showError(model, error));
}

/** Undo or redo, relative to the current choice in Python, as keys may be pressed quickly.
 * @param {Model} model @param {"undo" | "redo"} what
 */
export function step(model, what) {
  ask(model, what).catch((error) => showError(model, error));
}

/** @param {NodeKey} key @returns {string} layer and feature */
export const idOf = ([layer, feature]) => `${layer}/${feature}`;

/** A feature's name, or "".
 * @param {Model} model @param {NodeKey} key @returns {string}
 */
export const labelOf = (model, key) =>
  (model.get("labels") ?? []).find((/** @type {any[]} */ [l, f]) => same([l, f], key))?.[2] ?? "";

/** The verb of a tick, and its participle.
 * @param {Model} model
 */
export const verb = (model) =>
  model.get("debias")?.project ? { now: "project out", done: "projected out" } : { now: "ablate", done: "ablated" };

/** @param {string} text */
export const capital = (text) => text[0].toUpperCase() + text.slice(1);

/** @param {number} n */
export const features = (n) => counted(n, "feature");

/** A share in percent with one decimal, as accuracies are written.
 * @param {number | null | undefined} x
 */
export const accuracy = (x) => (x == null ? "–" : `${(100 * x).toFixed(1)}%`);

/** A change in points. @param {number} x */
export function points(x) {
  const size = Math.abs(100 * x).toFixed(1);
  return `${!Number(size) ? "±" : x > 0 ? "+" : "−"}${size}`;
}
