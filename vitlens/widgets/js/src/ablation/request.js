// Requests for ablations: nodes that are switched off or set to a value.

/** @import { Model, NodeKey } from "../lib/types" */
import { same } from "../lib/model.js";
import { requestTrait } from "../lib/request.js";

/** @typedef {[number, number, number | null]} Ablation */

/** @param {Model} model @returns {Ablation[]} */
export const ablations = (model) => model.get("ablations") ?? [];

/** Sets the ablations; Python answers with `outcome`.
 * @param {Model} model @param {Ablation[]} wanted
 */
export function request(model, wanted) {
  requestTrait(model, "ablations", wanted, () => model.get("outcome")?.ablations ?? []);
}

/** Switches nodes off, or restores them when all are ablated.
 * @param {Model} model @param {NodeKey[]} keys
 */
export function toggle(model, keys) {
  const rest = without(model, keys);
  const all = rest.length === ablations(model).length - keys.length;
  request(model, all ? rest : [...rest, ...keys.map(([l, f]) => /** @type {Ablation} */ ([l, f, null]))]);
  return !all;
}

/** @param {Model} model @param {NodeKey} key @param {number | null} value */
export function setTo(model, key, value) {
  const others = without(model, [key]);
  request(model, [...others, [key[0], key[1], value]]);
}

/** @param {Model} model @param {NodeKey[]} keys */
export const without = (model, keys) =>
  ablations(model).filter(([l, f]) => !keys.some((key) => same(key, [l, f])));
