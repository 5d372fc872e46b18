// The description of a point.

/** @import { Data } from "./data.js" */
import { headerOf } from "../browser/columns.js";
import { fixed, percent } from "../lib/dom.js";
import { keyOf } from "./data.js";

/**
 * @param {Data} data @param {number} point @param {string} label @param {string} by
 */
export function describe(data, point, label, by) {
  const [layer, feature] = keyOf(data, point);
  const kind = data.kindNames[data.kinds[point]];
  const parts = [`${layer}/${feature}${label ? ` ${label}` : ""}`];
  const column = by === "kind" ? data.behind[kind] : by;
  if (by === "kind" && headerOf(column) !== kind) {
    const known = Object.keys(data.chance[data.layers[point]] ?? {}).length > 0;
    parts.push(kind !== "none" ? kind : known ? "no score above chance" : "not measured");
  }
  const value = data.columns.get(column)?.[point];
  if (value !== undefined) parts.push(figure(column, value, data.chance[data.layers[point]]?.[column]));
  return parts.join("\n");
}

/** @param {string} column @param {number} value @param {number | undefined} chance */
function figure(column, value, chance) {
  if (Number.isNaN(value)) return `${headerOf(column)}: not measured`;
  const text = column === "frequency" ? `${percent(value)} of tokens` : `${headerOf(column)} ${fixed(value)}`;
  return chance === undefined ? text : `${text}, chance ${fixed(chance)}`;
}
