// Nodes as buttons: placed with transforms, reused while a slider moves.

/** @import { Data } from "./data.js" */
/** @import { Item, Scene } from "./scene.js" */
import { h, show } from "../lib/dom.js";
import { ERROR, featureName, shareWords } from "./data.js";

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
 * @property {HTMLCanvasElement | null} canvas
 * @property {HTMLElement} name
 * @property {HTMLElement} share
 * @property {number} drawn the candidate on the thumbnail
 * @property {Record<string, string>} last what was set
 */

/**
 * @param {HTMLElement} world
 * @param {(canvas: HTMLCanvasElement, id: number) => void} askThumb
 */
export function createNodes(world, askThumb) {
  /** @type {Map<string, Button>} */
  const buttons = new Map();
  /** Buttons of nodes that are pruned now: they come back with their thumbnails.
   * @type {Map<string, Button>}
   */
  const spare = new Map();
  /** @type {string} */
  let current = "";

  /** @param {Item} item @returns {Button} */
  function make(item) {
    const target = item.key === "target";
    const canvas = target ? null : h("canvas", { class: "vl-node-thumb", "aria-hidden": "true" });
    const name = h("span", { class: "vl-node-name" });
    const share = h("span", { class: "vl-node-share" });
    const element = h(
      "button",
      { class: target ? "vl-node vl-node-target" : "vl-node", tabindex: "-1", "data-key": item.key },
      canvas,
      h("span", { class: "vl-node-words" }, name, share),
    );
    return { element, canvas, name, share, drawn: -1, last: {} };
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
        if (button.element.matches(":focus")) lost = button.drawn;
        button.element.remove();
        button.element.tabIndex = -1;
        buttons.delete(key);
        spare.set(key, button);
      }
      scene.items.forEach((item, place) => {
        let button = buttons.get(item.key);
        if (!button) {
          button = spare.get(item.key) ?? make(item);
          spare.delete(item.key);
          buttons.set(item.key, button);
          world.append(button.element);
        }
        const { element, canvas, name, share } = button;
        if (canvas && button.drawn !== item.ids[0]) {
          button.drawn = item.ids[0];
          askThumb(canvas, item.ids[0]);
        }
        const said = words(data, item, marked);
        put(button, "at", `translate(${item.x}px,${item.y}px)`, (at) => (element.style.transform = at));
        put(button, "name", said.name, (text) => (name.textContent = text));
        put(button, "share", said.share, (text) => (share.textContent = text));
        put(button, "title", said.name, (text) => (element.title = text));
        put(button, "class", classes(data, item, marked), (text) => (element.className = text));
        const ends = `${scene.into[place].length} edges in, ${scene.out[place].length} out`;
        put(button, "label", `${said.spoken}; ${ends}`, (text) =>
          element.setAttribute("aria-label", text),
        );
        const pressed = String(item.ids.includes(marked.selected ?? -1));
        put(button, "pressed", pressed, (text) => element.setAttribute("aria-pressed", text));
      });
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
      for (const { element } of buttons.values()) element.remove();
      buttons.clear();
      spare.clear();
    },
  };
}

/** @param {Data} data @param {Item} item @param {Marked} marked */
function words(data, item, { pinned, labels, groups, ablated }) {
  if (item.key === "target") {
    const value = show(data.goal.value);
    const what = data.goal.index == null ? "target" : "logit − mean logit";
    return {
      name: data.goal.name,
      share: `${what}\n${value}`,
      spoken: `Target ${data.goal.name}, ${what} ${value}`,
    };
  }
  const [id] = item.ids;
  const share = shareWords(item.share);
  const where = `Layer ${item.layer}`;
  if (item.group) {
    const n = item.ids.length;
    return {
      name: item.group,
      share,
      spoken: `${where}, supernode ${item.group} of ${n} node${n > 1 ? "s" : ""}, share ${share}`,
    };
  }
  const number = featureName(data.features[id]);
  const label = labels.get(id);
  const said = [
    `${where}, ${data.features[id] === ERROR ? "error node" : `feature ${number}`}`,
    label && `“${label}”`,
    `share ${share}`,
    groups.has(id) && `in supernode ${groups.get(id)}`,
    pinned.has(id) && "pinned",
    ablated.has(id) && (ablated.get(id) == null ? "switched off" : `set to ${ablated.get(id)}`),
  ];
  return { name: label ?? number, share, spoken: said.filter(Boolean).join(", ") };
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
