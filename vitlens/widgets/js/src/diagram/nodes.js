// Nodes as buttons: placed with transforms, reused while a slider moves.

/** @import { Data } from "./data.js" */
/** @import { Item, Scene } from "./scene.js" */
import { counted, h, show } from "../lib/dom.js";
import { ERROR, featureName, shareWords } from "./data.js";

const PAUSE = 150; // ms

/**
 * What people did to the nodes.
 * @typedef {object} Marked
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
 * @property {Record<string, string>} last what was set
 */

/** @param {HTMLElement} world */
export function createNodes(world) {
  /** @type {Map<string, Button>} */
  const buttons = new Map();
  /** Nodes that are pruned now: only hidden, for nothing is laid out anew when they come back.
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
      h("span", { class: "vl-node-words" }, name, share),
    );
    world.append(element);
    return { element, name, share, id: item.ids[0], last: {} };
  }

  /** Takes a button out of use. @param {string} key @param {Button} button */
  function putAway(key, button) {
    buttons.delete(key);
    if (key.startsWith("group")) return button.element.remove();
    spare.set(key, button);
    button.element.className = button.last.class = "vl-gone";
    button.element.tabIndex = -1;
  }

  /** What a screen reader says. @param {Data} data @param {Scene} scene @param {Marked} marked @param {string} key */
  function describe(data, scene, marked, key) {
    const button = buttons.get(key);
    const place = scene.places.get(key);
    if (!button || place === undefined) return;
    const ends = `${counted(scene.into[place].length, "edge")} in, ${scene.out[place].length} out`;
    put(button, "label", `${spoken(data, scene.items[place], marked)}; ${ends}`, (text) =>
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
     * @param {Data} data @param {Scene} scene @param {Marked} marked
     */
    update(data, scene, marked) {
      /** @type {number | undefined} */
      let lost; // a candidate whose button had the focus
      for (const [key, button] of buttons) {
        if (scene.places.has(key)) continue;
        if (button.element.matches(":focus")) lost = button.id;
        putAway(key, button);
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
        const [called, number] = words(data, item, marked);
        put(button, "at", `translate(${item.x}px,${item.y}px)`, (at) => (element.style.transform = at));
        put(button, "name", called, (text) => (name.textContent = text));
        const kind = item.group ? "" : (data.kinds[item.ids[0]] ?? "");
        put(button, "title", [called, kind].filter(Boolean).join("\n"), (text) => (element.title = text));
        put(button, "share", number, (text) => (share.textContent = text));
        put(button, "class", classes(data, item, marked), (text) => (element.className = text));
        const pressed = String(item.ids.includes(marked.selected ?? -1));
        put(button, "pressed", pressed, (text) => element.setAttribute("aria-pressed", text));
      }
      describe(data, scene, marked, current);
      clearTimeout(timer); // what is said of the others can wait until a slider rests
      timer = setTimeout(() => {
        for (const key of buttons.keys()) describe(data, scene, marked, key);
      }, PAUSE);
      const heir = lost === undefined ? undefined : scene.itemOf.get(lost);
      if (heir !== undefined) this.focus(scene.items[heir].key);
      else if (!buttons.has(current)) this.makeCurrent("target");
    },
    /** The one that Tab leads to. @param {string} key */
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

/** A node's two words: what it is called, and its share.
 * @param {Data} data @param {Item} item @param {Marked} marked
 */
function words(data, { key, ids, group, share }, { labels }) {
  if (key === "target") return [data.goal.name, `${whatOf(data)}\n${show(data.goal.value)}`];
  return [group || labels.get(ids[0]) || featureName(data.features[ids[0]]), shareWords(share)];
}

/** @param {Data} data */
const whatOf = (data) => (data.goal.index == null ? "target" : "logit − mean logit");

/** @param {Data} data @param {Item} item @param {Marked} marked */
function spoken(data, { key, ids, group, layer, share }, { pinned, labels, groups, ablated }) {
  if (key === "target") return `Target ${data.goal.name}, ${whatOf(data)} ${show(data.goal.value)}`;
  const [id] = ids;
  const part = `share ${shareWords(share)}`;
  if (group) return `Layer ${layer}, supernode ${group} of ${ids.length}, ${part}`;
  const feature = data.features[id];
  const value = ablated.get(id);
  const said = [
    `Layer ${layer}, ${feature === ERROR ? "error node" : `feature ${feature}`}`,
    labels.has(id) && `“${labels.get(id)}”`,
    part,
    data.kinds[id],
    groups.has(id) && `in supernode ${groups.get(id)}`,
    pinned.has(id) && "pinned",
    ablated.has(id) && (value == null ? "switched off" : `set to ${value}`),
  ];
  return said.filter(Boolean).join(", ");
}

/** @param {Data} data @param {Item} item @param {Marked} marked */
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
