// Which features are listed, and in what order; `vitlens.widgets.browser.order` says the same.

export const COLUMNS = /** @type {const} */ ([
  "importance",
  "max_activation",
  "mean_activation",
  "active_tokens",
]);

/** @typedef {typeof COLUMNS[number] | "feature" | "label"} Sort */

/**
 * @typedef {object} Wish
 * @property {Sort} sort
 * @property {boolean} descending
 * @property {string} query begins a feature's number, or is in its label
 * @property {boolean} activeOnly
 * @property {number} minActivation
 */

/**
 * @param {Float32Array[]} columns one array [F] for each of `COLUMNS`
 * @param {Map<number, string>} labels by feature
 * @param {Wish} wish
 * @returns {Uint32Array} features; equal ones by number, those without a label last under "label"
 */
export function order(columns, labels, { sort, descending, query, activeOnly, minActivation }) {
  const peak = columns[COLUMNS.indexOf("max_activation")];
  const wanted = query.trim().toLowerCase();
  const least = Math.fround(minActivation);
  const kept = new Uint32Array(peak.length);
  let n = 0;
  for (let f = 0; f < peak.length; f++) {
    if (peak[f] < least || (activeOnly && !(peak[f] > 0))) continue;
    if (wanted && !fits(f, labels.get(f), wanted)) continue;
    kept[n++] = f;
  }
  const features = kept.subarray(0, n);
  if (sort === "label") return byLabel(features, labels, descending);
  if (sort === "feature") return descending ? features.reverse() : features;
  const values = columns[COLUMNS.indexOf(sort)];
  const sign = descending ? -1 : 1;
  return features.sort((a, b) => sign * (values[a] - values[b]) || a - b);
}

/** @param {number} feature @param {string | undefined} label @param {string} wanted */
function fits(feature, label, wanted) {
  return String(feature).startsWith(wanted) || !!label?.toLowerCase().includes(wanted);
}

/** @param {Uint32Array} features @param {Map<number, string>} labels @param {boolean} descending */
function byLabel(features, labels, descending) {
  const sign = descending ? -1 : 1;
  const name = (/** @type {number} */ f) => labels.get(f)?.toLowerCase() ?? "";
  const named = [...features].filter((f) => labels.has(f));
  named.sort((a, b) => (name(a) === name(b) ? a - b : name(a) < name(b) ? -sign : sign));
  return Uint32Array.from([...named, ...features.filter((f) => !labels.has(f))]);
}
