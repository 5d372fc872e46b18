// Pins, supernodes and names, with undo.

/** @import { Model, NodeKey } from "../lib/types" */
import { same, save } from "../lib/model.js";

/** @typedef {Map<string, unknown>} ByNode values by key, as JSON */
/** @typedef {{ name: string, marks: { key: string, was: unknown, is: unknown }[], before: unknown, after: unknown }} Step of one trait */
/** @typedef {{ read: (value: any) => [NodeKey, unknown][], write: (marks: [NodeKey, any][]) => unknown }} Form */

const LONGEST = 100;

/** Traits as one value a node, and back. @type {Record<string, Form>} */
const FORMS = {
  pinned: {
    read: (keys) => keys.map((/** @type {NodeKey} */ key) => [key, true]),
    write: (marks) => marks.map(([key]) => key),
  },
  labels: {
    read: (labels) => labels.map((/** @type {[number, number, string]} */ [l, f, text]) => [[l, f], text]),
    write: (marks) => marks.map(([key, text]) => [...key, text]),
  },
  groups: {
    read: (groups) =>
      groups.flatMap((/** @type {[string, NodeKey[]]} */ [name, keys]) => keys.map((key) => [key, name])),
    write: (marks) => {
      const names = [...new Set(marks.map(([, name]) => name))];
      return names.map((name) => [name, marks.filter(([, other]) => other === name).map(([key]) => key)]);
    },
  },
};

/** @param {string} name of the trait @param {any} value @returns {ByNode} */
const byNode = (name, value) =>
  new Map(FORMS[name].read(value ?? []).map(([key, mark]) => [JSON.stringify(key), mark]));

/** @param {Model} model */
export function createMarks(model) {
  /** @type {Step[]} */
  let past = [];

  /** @param {string} name of the trait @param {unknown} value */
  function change(name, value) {
    const [before, after] = [byNode(name, model.get(name)), byNode(name, value)];
    const marks = [...new Set([...before.keys(), ...after.keys()])]
      .map((key) => ({ key, was: before.get(key), is: after.get(key) }))
      .filter(({ was, is }) => was !== is);
    if (!marks.length) return;
    past.push({ name, marks, before: model.get(name) ?? [], after: value });
    if (past.length > LONGEST) past.shift();
    save(model, { [name]: value });
  }

  /** Takes a step back, but for marks that somebody changed since; says whether any was left.
   * @param {Step} step
   */
  function takeBack({ name, marks, before, after }) {
    if (same(model.get(name), after)) {
      save(model, { [name]: before });
      return true;
    }
    const now = byNode(name, model.get(name));
    const own = marks.filter(({ key, is }) => now.get(key) === is);
    for (const { key, was } of own) {
      if (was === undefined) now.delete(key);
      else now.set(key, was);
    }
    if (own.length) save(model, { [name]: FORMS[name].write([...now].map(([key, mark]) => [JSON.parse(key), mark])) });
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
    /** Pins nodes, or lets go of them when all are pinned; says which.
     * @param {NodeKey[]} keys
     */
    togglePins(keys) {
      const rest = without(pinned(), keys);
      const all = rest.length === pinned().length - keys.length;
      change("pinned", all ? rest : [...rest, ...keys]);
      return !all;
    },
    /** Puts nodes into a supernode; a name that is taken gets them too.
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
    /** An empty name takes the label away. @param {NodeKey} key @param {string} name */
    rename(key, name) {
      const rest = labels().filter(([layer, feature]) => !same([layer, feature], key));
      change("labels", name ? [...rest, [...key, name]] : rest);
    },
    canUndo: () => past.length > 0,
    /** Takes back the last step of which something is left; says whether there was one. */
    undo() {
      for (let step = past.pop(); step; step = past.pop()) {
        if (takeBack(step)) return true;
      }
      return false;
    },
    forget() {
      past = [];
    },
  };
}
