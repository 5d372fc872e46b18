// A part of the card with its heading.

import { h } from "../lib/dom.js";

/** @param {string} text @param {HTMLElement} content @param {string} [hint] */
export const section = (text, content, hint) =>
  h(
    "section",
    { class: "vl-card-section" },
    h("h3", {}, text),
    hint && h("p", { class: "vl-card-hint vl-muted" }, hint),
    content,
  );
