// Nodes as buttons: positioned with transforms, reused while a slider moves.

/** @import { Data } from "./data.js" */
/** @import { Item, Scene } from "./scene.js" */
import { counted, h, show } from "../lib/dom.js";
import { ERROR, featureName, shareText } from "./data.js";

const PAUSE = 150; // ms

/**
 * Annotations and other states of the nodes.
 * @typedef {object} NodeStates
 * @property {Set<number>} pinned
 * @property {Map<number, string>} labels
 * @property {Map<number, string>} groups the name of each candidate's group, open or closed
 * @property {Map<number, number | null>} ablated values, null for off
 * @property {Set<number>} chosen for a new group
 * @property {number | undefined} selected
 *
 * @typedef {object} Button
 * @property {HTMLButtonElement} element
 * @property {HTMLElement} name
 * @property {HTMLElement} share
 * @property {number} id the candidate it shows
 * @property {Record<string, string>} last values that were set
 */

/** @param {HTMLElement} world */
export function createNodes(world) {
  /** @type {Map<string, Button>} */
  const buttons = new Map();
  /** Nodes that are pruned now: they are hidden, so that showing them again needs no layout.
   * @type {Map<string, Button>}
   */
  const spare = new Map();
  let current = "";
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  /** @param {Item} item @returns {Button} */
  function make(item) {
    const target = item.key === "target";
    const name = h("span", { class: "vl-node-name" });
    const share = h("span", { class: "vl-node-share" });
    const element = h(
      "button",
      { class: target ? "vl-node vl-node-target" : "vl-node", tabindex: "-1", "data-key": item.key },
      h("span", { class: "vl-node-text" }, name, share),
    );
    world.append(element);
    return { element, name, share, id: item.ids[0], last: {} };
  }

  /** Hides a button. @param {string} key @param {Button} button */
  function hide(key, button) {
    buttons.delete(key);
    if (key.startsWith("group")) return button.element.remove();
    spare.set(key, button);
    button.element.className = button.last.class = "vl-hidden";
    button.element.tabIndex = -1;
  }

  /** Sets the text for screen readers. @param {Data} data @param {Scene} scene @param {NodeStates} states @param {string} key */
  function describe(data, scene, states, key) {
    const button = buttons.get(key);
    const index = scene.indexOf.get(key);
    if (!button || index === undefined) return;
    const ends = `${counted(scene.into[index].length, "edge")} in, ${scene.out[index].length} out`;
    put(button, "label", `${descriptionOf(data, scene.items[index], states)}; ${ends}`, (text) =>
      button.element.setAttribute("aria-label", text),
    );
  }

  /** @param {Button} button @param {string} what @param {string} value @param {(value: string) => void} set */
  function put(button, what, value, set) {
    if (button.last[what] === value) return;
    button.last[what] = value;
    set(value);
  }

  return {
    /**
     * @param {Data} data @param {Scene} scene @param {NodeStates} states
     */
    update(data, scene, states) {
      /** @type {number | undefined} */
      let lost; // a candidate whose button had the focus
      for (const [key, button] of buttons) {
        if (scene.indexOf.has(key)) continue;
        if (button.element.matches(":focus")) lost = button.id;
        hide(key, button);
      }
      for (const item of scene.items) {
        let button = buttons.get(item.key);
        if (!button) {
          button = spare.get(item.key) ?? make(item);
          spare.delete(item.key);
          buttons.set(item.key, button);
        }
        const { element, name, share } = button;
        button.id = item.ids[0];
        const [title, number] = textsOf(data, item, states);
        put(button, "at", `translate(${item.x}px,${item.y}px)`, (at) => (element.style.transform = at));
        put(button, "name", title, (text) => (name.textContent = text));
        const kind = item.group ? "" : (data.kinds[item.ids[0]] ?? "");
        put(button, "title", [title, kind].filter(Boolean).join("\n"), (text) => (element.title = text));
        put(button, "share", number, (text) => (share.textContent = text));
        put(button, "class", classes(data, item, states), (text) => (element.className = text));
        const pressed = String(item.ids.includes(states.selected ?? -1));
        put(button, "pressed", pressed, (text) => element.setAttribute("aria-pressed", text));
      }
      describe(data, scene, states, current);
      clearTimeout(timer); // the other texts can wait until a slider rests
      timer = setTimeout(() => {
        for (const key of buttons.keys()) describe(data, scene, states, key);
      }, PAUSE);
      const next = lost === undefined ? undefined : scene.itemOf.get(lost);
      if (next !== undefined) this.focus(scene.items[next].key);
      else if (!buttons.has(current)) this.makeCurrent("target");
    },
    /** Sets the node that Tab moves to. @param {string} key */
    makeCurrent(key) {
      buttons.get(current)?.element.setAttribute("tabindex", "-1");
      current = key;
      buttons.get(key)?.element.setAttribute("tabindex", "0");
    },
    current: () => current,
    /** @param {string} key */
    focus(key) {
      this.makeCurrent(key);
      buttons.get(key)?.element.focus({ preventScroll: true });
    },
    /** @param {string} key */
    element: (key) => buttons.get(key)?.element,
    /** @param {Set<string>} keys */
    light(keys) {
      for (const [key, { element }] of buttons) element.classList.toggle("vl-lit", keys.has(key));
    },
    forget() {
      for (const { element } of [...buttons.values(), ...spare.values()]) element.remove();
      buttons.clear();
      spare.clear();
    },
  };
}

/** The name of a node, and its share.
 * @param {Data} data @param {Item} item @param {NodeStates} states
 */
function textsOf(data, { key, ids, group, share }, { labels }) {
  if (key === "target") return [data.goal.name, `${kindOf(data)}\n${show(data.goal.value)}`];
  return [group || labels.get(ids[0]) || featureName(data.features[ids[0]]), shareText(share)];
}

/** @param {Data} data */
const kindOf = (data) => (data.goal.index == null ? "target" : "logit − mean logit");

/** @param {Data} data @param {Item} item @param {NodeStates} states */
function descriptionOf(data, { key, ids, group, layer, share }, { pinned, labels, groups, ablated }) {
  if (key === "target") return `Target ${data.goal.name}, ${kindOf(data)} ${show(data.goal.value)}`;
  const [id] = ids;
  const part = `share ${shareText(share)}`;
  if (group) return `Layer ${layer}, supernode ${group} of ${ids.length}, ${part}`;
  const feature = data.features[id];
  const value = ablated.get(id);
  const parts = [
    `Layer ${layer}, ${feature === ERROR ? "error node" : `feature ${feature}`}`,
    labels.has(id) && `“${labels.get(id)}”`,
    part,
    data.kinds[id],
    groups.has(id) && `in supernode ${groups.get(id)}`,
    pinned.has(id) && "pinned",
    ablated.has(id) && (value == null ? "switched off" : `set to ${value}`),
  ];
  return parts.filter(Boolean).join(", ");
}

/** @param {Data} data @param {Item} item @param {NodeStates} states */
function classes(data, { key, ids, group }, { pinned, labels, groups, ablated, chosen, selected }) {
  if (key === "target") return `vl-node vl-node-target${selected === ids[0] ? " vl-selected" : ""}`;
  const [id] = ids;
  const names = {
    "vl-node": true,
    "vl-node-error": !group && data.features[id] === ERROR,
    "vl-node-group": Boolean(group),
    "vl-node-member": !group && groups.has(id),
    "vl-node-named": Boolean(group) || labels.has(id),
    "vl-pinned": ids.every((one) => pinned.has(one)),
    "vl-chosen": ids.some((one) => chosen.has(one)),
    "vl-off": ids.some((one) => ablated.get(one) === null),
    "vl-set": ids.some((one) => ablated.get(one) != null),
    "vl-selected": selected !== undefined && ids.includes(selected),
  };
  return Object.keys(names)
    .filter((name) => names[/** @type {keyof names} */ (name)])
    .join(" ");
}
