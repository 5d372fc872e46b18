// A model with some local traits: their values never reach Python.

/** @import { Model } from "../lib/types" */

/**
 * @param {Model} model
 * @param {Record<string, unknown>} own first values of the local traits
 * @returns {Model & { put(changes: Record<string, unknown>): void }}
 */
export function overlay(model, own) {
  const values = { ...own };
  /** @type {Map<string, Set<(...args: any[]) => void>>} */
  const listeners = new Map(Object.keys(own).map((name) => [`change:${name}`, new Set()]));

  /** @param {string} name @param {unknown} value */
  function put(name, value) {
    if (values[name] === value) return;
    values[name] = value;
    for (const fn of listeners.get(`change:${name}`) ?? []) fn(value);
  }

  return {
    get: (name) => (name in values ? values[name] : model.get(name)),
    set: (name, value) => (name in values ? put(name, value) : model.set(name, value)),
    put: (changes) => {
      for (const [name, value] of Object.entries(changes)) put(name, value);
    },
    save_changes: () => model.save_changes(),
    send: (...args) => model.send(...args),
    on: (event, fn) => {
      const local = listeners.get(event);
      if (local) local.add(fn);
      else model.on(event, fn);
    },
    off: (event, fn) => {
      const local = listeners.get(event);
      if (!local) model.off(event, fn);
      else if (fn) local.delete(fn);
    },
  };
}
