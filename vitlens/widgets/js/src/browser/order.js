// Which features are listed, and in which order, as in `vitlens.widgets.browser.order`.

/** @typedef {string} Sort a column, "feature" or "label" */

/**
 * @typedef {object} ListOptions
 * @property {Sort} sort
 * @property {boolean} descending
 * @property {string} query start of a feature's number, or part of its label or text
 * @property {boolean} activeOnly
 * @property {number} minActivation
 * @property {Record<string, number>} atLeast
 */

/**
 * @param {Map<string, Float32Array>} columns [F] by name
 * @param {Map<number, string>} labels by feature
 * @param {string[]} texts further text that the query searches: one per feature, or none
 * @param {ListOptions} options
 * @returns {Uint32Array} features; ties by number, those without a label last under "label",
 *   NaN last
 */
export function order(columns, labels, texts, options) {
  const { sort, descending, query, activeOnly } = options;
  const size = columns.values().next().value?.length ?? 0;
  const peak = columns.get("max_activation");
  const wanted = query.trim().toLowerCase();
  /** @type {[Float32Array, number][]} */
  const least = peak ? [[peak, Math.fround(options.minActivation)]] : [];
  for (const [name, value] of Object.entries(options.atLeast)) {
    const column = columns.get(name);
    if (column) least.push([column, Math.fround(value)]);
  }
  const kept = new Uint32Array(size);
  let n = 0;
  for (let f = 0; f < size; f++) {
    if (!least.every(([column, value]) => column[f] >= value)) continue;
    if (peak && activeOnly && !(peak[f] > 0)) continue;
    if (wanted && !fits(f, labels.get(f), texts[f], wanted)) continue;
    kept[n++] = f;
  }
  const features = kept.subarray(0, n);
  if (sort === "label") return byLabel(features, labels, descending);
  if (sort === "feature") return descending ? features.reverse() : features;
  const values = columns.get(sort);
  return values ? byValue(features, values, descending ? -1 : 1) : features;
}

/** @param {Uint32Array} features @param {Float32Array} values @param {number} sign */
function byValue(features, values, sign) {
  const known = features.filter((f) => !Number.isNaN(values[f]));
  known.sort((a, b) => sign * (values[a] - values[b]) || a - b);
  if (known.length === features.length) return known;
  return Uint32Array.from([...known, ...features.filter((f) => Number.isNaN(values[f]))]);
}

/**
 * @param {number} feature @param {string | undefined} label @param {string | undefined} text
 * @param {string} wanted
 */
const fits = (feature, label, text, wanted) =>
  String(feature).startsWith(wanted) ||
  !!label?.toLowerCase().includes(wanted) ||
  !!text?.toLowerCase().includes(wanted);

/** @param {Uint32Array} features @param {Map<number, string>} labels @param {boolean} descending */
function byLabel(features, labels, descending) {
  const sign = descending ? -1 : 1;
  const name = (/** @type {number} */ f) => labels.get(f)?.toLowerCase() ?? "";
  const named = [...features].filter((f) => labels.has(f));
  named.sort((a, b) => (name(a) === name(b) ? a - b : name(a) < name(b) ? -sign : sign));
  return Uint32Array.from([...named, ...features.filter((f) => !labels.has(f))]);
}
