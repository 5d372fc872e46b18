// Elements in one expression.

const SVG = "http://www.w3.org/2000/svg";
const TAKES_KEYS = new Set(["BUTTON", "INPUT", "SELECT", "TEXTAREA", "A", "SUMMARY"]);

/** @typedef {Node | string | number | null | undefined | false} Child */

/**
 * An HTML element. `on…` are listeners, `style` an object, `dataset` an object, `class` a text;
 * properties of the element are set as such, everything else becomes an attribute; null, undefined
 * and false omit the attribute.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [props]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props = {}, ...children) {
  return applyProps(document.createElement(tag), props, children);
}

/**
 * The same for SVG.
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, any>} [props]
 * @param {...(Child | Child[])} children
 * @returns {SVGElementTagNameMap[K]}
 */
export function s(tag, props = {}, ...children) {
  return applyProps(document.createElementNS(SVG, tag), props, children);
}

/**
 * @template {HTMLElement | SVGElement} E
 * @param {E} element
 * @param {Record<string, any>} props
 * @param {(Child | Child[])[]} children
 */
function applyProps(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [key, x] of Object.entries(value)) element.style.setProperty(key, String(x));
    } else if (name === "dataset") Object.assign(element.dataset, value);
    else if (value == null || value === false) continue;
    else if (name === "value" || name === "checked" || name === "textContent") {
      /** @type {any} */ (element)[name] = value;
    } else element.setAttribute(name, value === true ? "" : String(value));
  }
  // Without this attribute, Notebook 7 takes the keys of a focused element for its own shortcuts.
  if (TAKES_KEYS.has(element.tagName) || element.hasAttribute("tabindex")) {
    element.setAttribute("data-lm-suppress-shortcuts", "true");
  }
  element.append(.../** @type {(Node | string)[]} */ (children.flat().filter(shown).map(text)));
  return element;
}

/** @param {Child} child */
const shown = (child) => child != null && child !== false;
/** @param {Child} child */
const text = (child) => (typeof child === "number" ? String(child) : child);

/**
 * Replaces the children of an element.
 * @param {Element} element @param {...(Child | Child[])} children
 */
export function fill(element, ...children) {
  element.replaceChildren(
    .../** @type {(Node | string)[]} */ (children.flat().filter(shown).map(text)),
  );
}

/** A label with its control, for toolbars.
 * @param {string} text @param {HTMLElement} control
 */
export const field = (text, control) =>
  h("label", { class: "vl-field" }, h("span", {}, text), control);

/** A number for people: three digits, with a minus sign.
 * @param {number} x
 */
export function show(x) {
  if (!Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size && (size < 1e-3 || size >= 1e5)) return x.toExponential(1).replaceAll("-", "−");
  return String(Number(x.toPrecision(3))).replace("-", "−");
}

/** A number for tables: three digits without powers of ten, and values near 0 as "<0.001".
 * @param {number} x
 */
export function plain(x) {
  if (!Number.isFinite(x)) return "–";
  if (x && Math.abs(x) < 1e-3) return x < 0 ? ">−0.001" : "<0.001";
  return String(Number(x.toPrecision(3))).replace("-", "−");
}

/** A number with a fixed number of decimals; without a sign where they are all 0.
 * @param {number} x @param {number} digits
 */
export function decimals(x, digits) {
  if (!Number.isFinite(x)) return "–";
  const text = x.toFixed(digits);
  return Number(text) ? text.replace("-", "−") : text.replace("-", "");
}

/** A count with its noun.
 * @param {number} n @param {string} what the noun in the singular
 */
export const counted = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

/** A name within a sentence: a right-to-left name must not reverse the text after it.
 * @param {string} name
 */
export const isolated = (name) => (/[\u0590-\u08ff\ufb1d-\ufefc]/.test(name) ? `\u2068${name}\u2069` : name);

/** A share as percent.
 * @param {number} x
 */
export const percent = (x) => `${plain(100 * x)}%`;

/** A score: two decimals, so that columns align; one digit where those would be 0.
 * @param {number} x
 */
export function fixed(x) {
  if (!(Math.abs(x) >= 0.005)) return plain(Number(x.toPrecision(1)));
  return x.toFixed(2).replace("-", "−");
}
