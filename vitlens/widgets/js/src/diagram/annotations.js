// Pins, supernodes and names, with undo.

/** @import { Model, NodeKey } from "../lib/types" */
import { same, save } from "../lib/model.js";

/** @typedef {Map<string, unknown>} ByNode values by key, as JSON */
/** @typedef {{ name: string, entries: { key: string, was: unknown, is: unknown }[], before: unknown, after: unknown }} Step of one trait */
/** @typedef {{ read: (value: any) => [NodeKey, unknown][], write: (entries: [NodeKey, any][]) => unknown }} Form */

const LONGEST = 100;

/** Traits as one value per node, and back. @type {Record<string, Form>} */
const FORMS = {
  pinned: {
    read: (keys) => keys.map((/** @type {NodeKey} */ key) => [key, true]),
    write: (entries) => entries.map(([key]) => key),
  },
  labels: {
    read: (labels) => labels.map((/** @type {[number, number, string]} */ [l, f, text]) => [[l, f], text]),
    write: (entries) => entries.map(([key, text]) => [...key, text]),
  },
  groups: {
    read: (groups) =>
      groups.flatMap((/** @type {[string, NodeKey[]]} */ [name, keys]) => keys.map((key) => [key, name])),
    write: (entries) => {
      const names = [...new Set(entries.map(([, name]) => name))];
      return names.map((name) => [name, entries.filter(([, other]) => other === name).map(([key]) => key)]);
    },
  },
};

/** @param {string} name of the trait @param {any} value @returns {ByNode} */
const byNode = (name, value) =>
  new Map(FORMS[name].read(value ?? []).map(([key, entry]) => [JSON.stringify(key), entry]));

/** @param {Model} model */
export function createAnnotations(model) {
  /** @type {Step[]} */
  let past = [];

  /** @param {string} name of the trait @param {unknown} value */
  function change(name, value) {
    const [before, after] = [byNode(name, model.get(name)), byNode(name, value)];
    const entries = [...new Set([...before.keys(), ...after.keys()])]
      .map((key) => ({ key, was: before.get(key), is: after.get(key) }))
      .filter(({ was, is }) => was !== is);
    if (!entries.length) return;
    past.push({ name, entries, before: model.get(name) ?? [], after: value });
    if (past.length > LONGEST) past.shift();
    save(model, { [name]: value });
  }

  /** Reverts a step, except entries that were changed since; returns whether any entry was left.
   * @param {Step} step
   */
  function revert({ name, entries, before, after }) {
    if (same(model.get(name), after)) {
      save(model, { [name]: before });
      return true;
    }
    const now = byNode(name, model.get(name));
    const own = entries.filter(({ key, is }) => now.get(key) === is);
    for (const { key, was } of own) {
      if (was === undefined) now.delete(key);
      else now.set(key, was);
    }
    if (own.length) save(model, { [name]: FORMS[name].write([...now].map(([key, entry]) => [JSON.parse(key), entry])) });
    return own.length > 0;
  }

  const pinned = () => /** @type {NodeKey[]} */ (model.get("pinned") ?? []);
  const groups = () => /** @type {[string, NodeKey[]][]} */ (model.get("groups") ?? []);
  const labels = () => /** @type {[number, number, string][]} */ (model.get("labels") ?? []);
  /** @param {NodeKey[]} from @param {NodeKey[]} keys */
  const without = (from, keys) => from.filter((key) => !keys.some((other) => same(key, other)));
  /** @param {NodeKey[]} keys */
  const withoutGroup = (keys) =>
    groups()
      .map(([name, members]) => /** @type {[string, NodeKey[]]} */ ([name, without(members, keys)]))
      .filter(([, members]) => members.length);

  return {
    pinned,
    groups,
    labels,
    /** Pins nodes, or unpins them when all are pinned; returns whether they are pinned now.
     * @param {NodeKey[]} keys
     */
    togglePins(keys) {
      const rest = without(pinned(), keys);
      const all = rest.length === pinned().length - keys.length;
      change("pinned", all ? rest : [...rest, ...keys]);
      return !all;
    },
    /** Puts nodes into a supernode; an existing group of that name is extended.
     * @param {string} name @param {NodeKey[]} keys
     */
    group(name, keys) {
      const rest = withoutGroup(keys);
      const known = rest.find(([other]) => other === name);
      if (known) known[1] = [...known[1], ...keys];
      else rest.push([name, keys]);
      change("groups", rest);
    },
    /** @param {NodeKey[]} keys */
    ungroup: (keys) => change("groups", withoutGroup(keys)),
    /** @param {string} from @param {string} to */
    renameGroup(from, to) {
      if (from === to || !to) return;
      const members = groups().find(([name]) => name === from)?.[1] ?? [];
      const rest = groups().filter(([name]) => name !== from);
      const known = rest.find(([name]) => name === to);
      const renamed = /** @type {[string, NodeKey[]]} */ ([to, [...(known?.[1] ?? []), ...members]]);
      change("groups", [...rest.filter((group) => group !== known), renamed]);
    },
    /** An empty name removes the label. @param {NodeKey} key @param {string} name */
    rename(key, name) {
      const rest = labels().filter(([layer, feature]) => !same([layer, feature], key));
      change("labels", name ? [...rest, [...key, name]] : rest);
    },
    canUndo: () => past.length > 0,
    /** Reverts the last step that still has an effect; returns whether there was one. */
    undo() {
      for (let step = past.pop(); step; step = past.pop()) {
        if (revert(step)) return true;
      }
      return false;
    },
    forget() {
      past = [];
    },
  };
}
