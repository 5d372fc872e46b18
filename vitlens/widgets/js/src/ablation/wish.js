// Wishes for ablations: what is switched off or set to a value.

/** @import { Model, NodeKey } from "../lib/types" */
import { same } from "../lib/model.js";
import { wishFor } from "../lib/wish.js";

/** @typedef {[number, number, number | null]} Ablation */

/** @param {Model} model @returns {Ablation[]} */
export const ablations = (model) => model.get("ablations") ?? [];

/** Sets what is ablated; Python answers by way of `outcome`.
 * @param {Model} model @param {Ablation[]} wanted
 */
export function wish(model, wanted) {
  wishFor(model, "ablations", wanted, () => model.get("outcome")?.ablations ?? []);
}

/** Switches nodes off, or, when all are ablated, on again.
 * @param {Model} model @param {NodeKey[]} keys
 */
export function toggle(model, keys) {
  const rest = without(model, keys);
  const all = rest.length === ablations(model).length - keys.length;
  wish(model, all ? rest : [...rest, ...keys.map(([l, f]) => /** @type {Ablation} */ ([l, f, null]))]);
  return !all;
}

/** @param {Model} model @param {NodeKey} key @param {number | null} value */
export function setTo(model, key, value) {
  const others = without(model, [key]);
  wish(model, [...others, [key[0], key[1], value]]);
}

/** @param {Model} model @param {NodeKey[]} keys */
export const without = (model, keys) =>
  ablations(model).filter(([l, f]) => !keys.some((key) => same(key, [l, f])));
