// Light or dark, following the page.

/** The setting of the host (Jupyter, VS Code, Colab, marimo), else of the system. */
function isDark() {
  const { body, documentElement: html } = document;
  const { jpThemeLight, vscodeThemeKind } = body.dataset;
  if (jpThemeLight) return jpThemeLight === "false";
  if (vscodeThemeKind) return /dark|high-contrast$/.test(vscodeThemeKind);
  const named = html.getAttribute("theme") ?? html.dataset.theme ?? body.dataset.theme;
  if (named === "dark" || named === "light") return named === "dark";
  for (const element of [body, html]) {
    if (element.classList.contains("dark")) return true;
    if (element.classList.contains("light")) return false;
  }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/**
 * Keeps the class vl-dark or vl-light on `root`, and reports changes.
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 * @param {(dark: boolean) => void} [changed]
 */
export function themed(root, signal, changed) {
  const apply = () => {
    const dark = isDark();
    if (root.classList.contains(dark ? "vl-dark" : "vl-light")) return;
    root.classList.toggle("vl-dark", dark);
    root.classList.toggle("vl-light", !dark);
    changed?.(dark);
    root.dispatchEvent(new CustomEvent("vl-theme", { detail: { dark } }));
  };
  const watch = new MutationObserver(apply);
  const attributeFilter = ["class", "theme", "data-theme", "data-jp-theme-light", "data-vscode-theme-kind"];
  watch.observe(document.body, { attributes: true, attributeFilter });
  watch.observe(document.documentElement, { attributes: true, attributeFilter });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", apply, { signal });
  signal.addEventListener("abort", () => watch.disconnect(), { once: true });
  apply();
}

/** Whether the user asked for less motion. */
export const lessMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
