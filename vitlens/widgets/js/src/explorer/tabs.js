// Tabs; the content of a tab is built when it is first opened and its size is known.

import { h } from "../lib/dom.js";

let made = 0;

/**
 * @typedef {object} Tab
 * @property {string} name
 * @property {string} title
 * @property {HTMLElement} panel
 * @property {() => void} [build] called once, before it is first shown
 */

/**
 * @param {Tab[]} tabs
 * @param {string} label for a screen reader
 * @param {AbortSignal} signal
 */
export function tabbed(tabs, label, signal) {
  const id = `vl-x-tabs-${(made += 1)}-${Math.floor(Math.random() * 2 ** 32)}`;
  /** @type {Set<string>} */
  const built = new Set();
  /** @type {Set<string>} */
  const moved = new Set();
  let open = "";

  const buttons = tabs.map((tab) => {
    tab.panel.setAttribute("role", "tabpanel");
    tab.panel.setAttribute("aria-labelledby", `${id}-${tab.name}`);
    return h(
      "button",
      {
        type: "button",
        role: "tab",
        id: `${id}-${tab.name}`,
        class: "vl-x-tab",
        "data-tab": tab.name,
        onclick: () => show(tab.name),
      },
      tab.title,
    );
  });
  const list = h("div", { class: "vl-x-tablist", role: "tablist", "aria-label": label }, buttons);
  const element = h(
    "div",
    { class: "vl-x-tabs" },
    list,
    tabs.map((tab) => tab.panel),
  );

  /** @param {string} name */
  function show(name) {
    open = name;
    for (const [i, tab] of tabs.entries()) {
      const isOpen = tab.name === name;
      buttons[i].setAttribute("aria-selected", `${isOpen}`);
      buttons[i].tabIndex = isOpen ? 0 : -1;
      buttons[i].hidden = moved.has(tab.name);
      if (!moved.has(tab.name)) tab.panel.hidden = !isOpen;
      if (!isOpen || built.has(name)) continue;
      built.add(name);
      tab.build?.();
    }
  }

  list.addEventListener("keydown", (event) => {
    const there = tabs.filter((tab) => !moved.has(tab.name)).map((tab) => tab.name);
    const at = there.indexOf(open);
    /** @type {Record<string, string | undefined>} */
    const next = {
      ArrowRight: there[(at + 1) % there.length],
      ArrowLeft: there.at(at - 1),
      Home: there[0],
      End: there.at(-1),
    };
    const name = next[event.key];
    if (!name) return;
    event.preventDefault();
    event.stopPropagation();
    show(name);
    buttons[tabs.findIndex((tab) => tab.name === name)].focus();
  }, { signal });

  return {
    element,
    show,
    /**
     * Moves a tab's panel elsewhere, or back into the tabs.
     * @param {string} name @param {HTMLElement | null} elsewhere
     */
    move: (name, elsewhere) => {
      const tab = tabs.find((one) => one.name === name);
      if (!tab) return;
      if (elsewhere) {
        moved.add(name);
        elsewhere.append(tab.panel);
        tab.panel.hidden = false;
        if (!built.has(name)) {
          built.add(name);
          tab.build?.();
        }
      } else if (moved.delete(name)) element.append(tab.panel);
      const first = tabs.find((one) => !moved.has(one.name));
      show(moved.has(open) || !open ? (first?.name ?? "") : open);
    },
  };
}
