/** @import { Model } from "../lib/types" */

/**
 * @param {Model} _model
 * @param {HTMLElement} _el
 * @param {AbortSignal} _signal
 */
export function mountHeatmap(_model, _el, _signal) {}
