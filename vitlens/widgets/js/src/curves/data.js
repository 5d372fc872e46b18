// The traits `curves` and `curve_data` as one value to draw.

/** @typedef {"insertion" | "deletion"} Direction */

/**
 * @typedef {object} Curve one mean line with its interval; NaN where there is no interval
 * @property {Float32Array} mean
 * @property {Float32Array} low
 * @property {Float32Array} high
 */

/**
 * @typedef {object} CurvesInfo the trait `curves`
 * @property {string[]} methods
 * @property {Direction[]} directions
 * @property {number[]} q
 * @property {number[]} counts
 * @property {number} dictionary_size
 * @property {number} n_images
 * @property {string} metric
 * @property {boolean} is_share
 * @property {string} target
 * @property {string} errors
 * @property {Record<string, Record<string, Record<string, number | null>>>} areas
 */

/**
 * @typedef {object} CurveData
 * @property {CurvesInfo} info
 * @property {(direction: Direction, method: string) => Curve} curve
 */

/**
 * @param {CurvesInfo} info
 * @param {DataView} bytes float32 [direction, method, (mean, low, high), q]
 * @returns {CurveData | null} null when there are no curves
 */
export function readCurves(info, bytes) {
  if (!info?.methods?.length) return null;
  const steps = info.q.length;
  const expected = 4 * info.directions.length * info.methods.length * 3 * steps;
  if (bytes.byteLength !== expected) return null; // the other trait of the update has not arrived yet
  // A copy, because a view may start at an odd byte.
  const values = new Float32Array(
    bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength),
  );
  return {
    info,
    curve: (direction, method) => {
      const row = info.directions.indexOf(direction) * info.methods.length;
      const start = (row + info.methods.indexOf(method)) * 3 * steps;
      const part = (/** @type {number} */ i) =>
        values.subarray(start + i * steps, start + (i + 1) * steps);
      return { mean: part(0), low: part(1), high: part(2) };
    },
  };
}

/**
 * @param {CurveData} data
 * @param {Direction[]} directions
 * @returns {[number, number]} lowest and highest value to draw, 0 and 1 included for shares
 */
export function valueLimits(data, directions) {
  let [low, high] = data.info.is_share ? [0, 1] : [Infinity, -Infinity];
  for (const direction of directions) {
    for (const method of data.info.methods) {
      const { mean, low: lower, high: upper } = data.curve(direction, method);
      for (const values of [mean, lower, upper]) {
        for (const value of values) {
          if (Number.isNaN(value)) continue;
          low = Math.min(low, value);
          high = Math.max(high, value);
        }
      }
    }
  }
  const margin = 0.04 * (high - low || 1);
  return [low - margin, high + margin];
}
