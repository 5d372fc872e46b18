// Pins, supernodes and names, with undo.

/** @import { Model, NodeKey } from "../lib/types" */
import { same, save } from "../lib/model.js";

/** @typedef {Record<string, unknown>} Changes */

const LONGEST = 100;

/** @param {Model} model */
export function createMarks(model) {
  /** @type {Changes[]} */
  const past = [];

  /** @param {Changes} changes */
  function change(changes) {
    const names = Object.keys(changes).filter((name) => !same(model.get(name), changes[name]));
    if (!names.length) return;
    past.push(Object.fromEntries(names.map((name) => [name, model.get(name)])));
    if (past.length > LONGEST) past.shift();
    save(model, changes);
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
      change({ pinned: all ? rest : [...rest, ...keys] });
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
      change({ groups: rest });
    },
    /** @param {NodeKey[]} keys */
    ungroup: (keys) => change({ groups: withoutGroup(keys) }),
    /** @param {string} from @param {string} to */
    renameGroup(from, to) {
      if (from === to || !to) return;
      const members = groups().find(([name]) => name === from)?.[1] ?? [];
      const rest = groups().filter(([name]) => name !== from);
      const known = rest.find(([name]) => name === to);
      const renamed = /** @type {[string, NodeKey[]]} */ ([to, [...(known?.[1] ?? []), ...members]]);
      change({ groups: [...rest.filter((group) => group !== known), renamed] });
    },
    /** An empty name takes the label away. @param {NodeKey} key @param {string} name */
    rename(key, name) {
      const rest = labels().filter(([layer, feature]) => !same([layer, feature], key));
      change({ labels: name ? [...rest, [...key, name]] : rest });
    },
    canUndo: () => past.length > 0,
    undo() {
      const last = past.pop();
      if (last) save(model, last);
      return Boolean(last);
    },
  };
}
