// The program of an exported page: a model that holds the state, and the widget's module.

/** @import { Model } from "./lib/types" */

export {};

const content = JSON.parse(/** @type {string} */ (document.getElementById("vl-content")?.textContent));

/** @type {Record<string, unknown>} */
const values = { ...content.values };
for (const [name, text] of Object.entries(content.buffers)) {
  const bytes = Uint8Array.from(atob(/** @type {string} */ (text)), (c) => c.charCodeAt(0));
  values[name] = new DataView(bytes.buffer);
}

/** @type {Map<string, Set<Function>>} */
const listeners = new Map();

/** @type {Model} */
const model = {
  get: (name) => values[name],
  set(name, value) {
    const text = JSON.stringify(value);
    if (!ArrayBuffer.isView(value) && JSON.stringify(values[name]) === text) return;
    values[name] = value;
    for (const fn of listeners.get(`change:${name}`) ?? []) fn(value);
  },
  save_changes() {},
  send(message) {
    const { id, what, payload } = /** @type {any} */ (message);
    const value = content.answers[what]?.[JSON.stringify(payload, Object.keys(payload).sort())];
    if (value === undefined) throw new Error("This needs a running kernel.");
    queueMicrotask(() => {
      for (const fn of listeners.get("msg:custom") ?? []) fn({ vl: "answer", id, value }, []);
    });
  },
  on(name, fn) {
    if (!listeners.has(name)) listeners.set(name, new Set());
    listeners.get(name)?.add(fn);
  },
  off: (name, fn) => void (fn ? listeners.get(name)?.delete(fn) : listeners.delete(name)),
};

const url = URL.createObjectURL(new Blob([content.module], { type: "text/javascript" }));
const { default: found } = await import(url);
const module = typeof found === "function" ? await found() : found;
const signal = new AbortController().signal;
await module.initialize?.({ model, signal });
await module.render({ model, el: document.getElementById("vl-page"), signal });
