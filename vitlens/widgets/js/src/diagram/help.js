// Help for mouse and keys.

import { h } from "../lib/dom.js";

export const HELP = [
  "Click a node to select it, Ctrl-click to pin it, Shift-click to choose it for a group.",
  "Arrow keys move along the strongest edges and within a layer; Enter selects, P pins, Space chooses.",
  "G groups the chosen nodes, E opens or closes a group, Shift-G removes it; R or F2 renames; X switches off.",
  "Ctrl-Z undoes; Escape clears the selection. Drag to move; the wheel, + and − zoom, 0 fits.",
];

export const createHelp = () =>
  h(
    "details",
    { class: "vl-diagram-help" },
    h("summary", { "data-lm-suppress-shortcuts": "true" }, "Mouse and keys"),
    h("ul", {}, HELP.map((line) => h("li", {}, line))),
  );
