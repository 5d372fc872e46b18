// Tabs; what a tab shows is built when it is first opened, with its room known.

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
  const away = new Set();
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
      buttons[i].hidden = away.has(tab.name);
      if (!away.has(tab.name)) tab.panel.hidden = !isOpen;
      if (!isOpen || built.has(name)) continue;
      built.add(name);
      tab.build?.();
    }
  }

  list.addEventListener("keydown", (event) => {
    const there = tabs.filter((tab) => !away.has(tab.name)).map((tab) => tab.name);
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
     * Takes a tab's panel out, to stand elsewhere, or back in.
     * @param {string} name @param {HTMLElement | null} elsewhere
     */
    place: (name, elsewhere) => {
      const tab = tabs.find((one) => one.name === name);
      if (!tab) return;
      if (elsewhere) {
        away.add(name);
        elsewhere.append(tab.panel);
        tab.panel.hidden = false;
        if (!built.has(name)) {
          built.add(name);
          tab.build?.();
        }
      } else if (away.delete(name)) element.append(tab.panel);
      const first = tabs.find((one) => !away.has(one.name));
      show(away.has(open) || !open ? (first?.name ?? "") : open);
    },
  };
}
