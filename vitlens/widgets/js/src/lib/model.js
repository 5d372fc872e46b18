// Reading and writing the traits.

/** @import { Model } from "./types" */

/**
 * Bytes as numbers. They arrive as a DataView into a larger message, at any offset.
 * @param {DataView | ArrayBufferView | null | undefined} view
 */
export function bytesOf(view) {
  if (!view) return new Uint8Array(0);
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/** @param {DataView | ArrayBufferView | null | undefined} view */
function aligned(view) {
  const bytes = bytesOf(view);
  return bytes.byteOffset % 4 ? bytes.slice() : bytes;
}

/** @param {DataView | ArrayBufferView | null | undefined} view */
export function floatsOf(view) {
  const b = aligned(view);
  return new Float32Array(b.buffer, b.byteOffset, b.byteLength >> 2);
}

/** @param {DataView | ArrayBufferView | null | undefined} view */
export function intsOf(view) {
  const b = aligned(view);
  return new Int32Array(b.buffer, b.byteOffset, b.byteLength >> 2);
}

/**
 * Numbers of 16 bits, as Float32Array (browsers do not all have Float16Array).
 * @param {DataView | ArrayBufferView | null | undefined} view
 */
export function halfsOf(view) {
  const b = aligned(view);
  const halfs = new Uint16Array(b.buffer, b.byteOffset, b.byteLength >> 1);
  const out = new Float32Array(halfs.length);
  for (let i = 0; i < halfs.length; i++) out[i] = half(halfs[i]);
  return out;
}

/** @param {number} bits */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
}

/** @param {Model} model @param {string} name */
export const bytes = (model, name) => bytesOf(model.get(name));
/** @param {Model} model @param {string} name */
export const floats = (model, name) => floatsOf(model.get(name));
/** @param {Model} model @param {string} name */
export const ints = (model, name) => intsOf(model.get(name));
/** @param {Model} model @param {string} name */
export const halfs = (model, name) => halfsOf(model.get(name));

/**
 * Calls `fn` after any of the traits changed, from whichever side; once for simultaneous
 * changes. It is not called at the start.
 * @param {Model} model
 * @param {string[]} names
 * @param {(changed: Set<string>) => void} fn
 * @param {AbortSignal} signal
 */
export function listen(model, names, fn, signal) {
  /** @type {Set<string>} */
  let changed = new Set();
  for (const name of names) {
    const note = () => {
      if (signal.aborted) return;
      if (!changed.size) {
        queueMicrotask(() => {
          const all = changed;
          changed = new Set();
          if (!signal.aborted) fn(all);
        });
      }
      changed.add(name);
    };
    model.on(`change:${name}`, note);
    signal.addEventListener("abort", () => model.off(`change:${name}`, note), { once: true });
  }
}

/**
 * Sets traits in all views of the model, without sending them to Python.
 * @param {Model} model @param {Record<string, unknown>} changes
 */
export function setLocal(model, changes) {
  for (const [name, value] of Object.entries(changes)) model.set(name, value);
}

/**
 * Sets traits and sends them to Python.
 * @param {Model} model @param {Record<string, unknown>} changes
 */
export function save(model, changes) {
  setLocal(model, changes);
  model.save_changes();
}

/**
 * A `save` for quick changes: at once in the views, to Python at most every `wait` ms.
 * @param {Model} model @param {number} [wait]
 * @returns {(changes: Record<string, unknown>) => void}
 */
export function slowSave(model, wait = 100) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  return (changes) => {
    setLocal(model, changes);
    timer ??= setTimeout(() => {
      timer = undefined;
      model.save_changes();
    }, wait);
  };
}

/** Whether two values of traits (numbers, texts, nested lists) are equal.
 * @param {unknown} a @param {unknown} b
 */
export const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);
