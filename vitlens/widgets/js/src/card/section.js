// A part of the card with its heading.

import { h } from "../lib/dom.js";

/** @param {string} words @param {HTMLElement} content @param {string} [hint] */
export const section = (words, content, hint) =>
  h(
    "section",
    { class: "vl-card-section" },
    h("h3", {}, words),
    hint && h("p", { class: "vl-card-hint vl-muted" }, hint),
    content,
  );
