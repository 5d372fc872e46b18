// Wishes: which features are taken out, and going through the history.

/** @import { Model, NodeKey } from "../lib/types" */
import { ask } from "../lib/ask.js";
import { counted } from "../lib/dom.js";
import { same } from "../lib/model.js";
import { tell } from "../lib/notice.js";
import { wishFor } from "../lib/wish.js";

/** @param {Model} model @returns {NodeKey[]} */
export const chosen = (model) => model.get("chosen") ?? [];

/** @param {NodeKey[]} list @param {NodeKey | null} node */
export const has = (list, node) => list.some((key) => same(key, node));

/** Sets what is taken out; Python answers by way of `report`.
 * @param {Model} model @param {NodeKey[]} wanted
 */
export function wish(model, wanted) {
  wishFor(model, "chosen", wanted, () => model.get("report")?.chosen ?? []);
}

/** @param {Model} model @param {NodeKey} node */
export function toggle(model, node) {
  const others = chosen(model).filter((key) => !same(key, node));
  wish(model, others.length < chosen(model).length ? others : [...others, node]);
}

/** Goes to a place of the history.
 * @param {Model} model @param {number} place
 */
export function goTo(model, place) {
  ask(model, "go_to", { place }).catch((error) => tell(model, error));
}

/** Undo or redo; Python counts from where it is by then, as keys may come fast.
 * @param {Model} model @param {"undo" | "redo"} what
 */
export function step(model, what) {
  ask(model, what).catch((error) => tell(model, error));
}

/** @param {NodeKey} key @returns {string} layer and feature */
export const idOf = ([layer, feature]) => `${layer}/${feature}`;

/** A feature's name, or "".
 * @param {Model} model @param {NodeKey} key @returns {string}
 */
export const labelOf = (model, key) =>
  (model.get("labels") ?? []).find((/** @type {any[]} */ [l, f]) => same([l, f], key))?.[2] ?? "";

/** What a tick does, and what is done.
 * @param {Model} model
 */
export const verb = (model) =>
  model.get("debias")?.project ? { now: "project out", done: "projected out" } : { now: "ablate", done: "ablated" };

/** @param {string} words */
export const capital = (words) => words[0].toUpperCase() + words.slice(1);

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
